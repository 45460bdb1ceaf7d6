"""Models of several branches; `model.reid.BRANCHES` lists them."""
