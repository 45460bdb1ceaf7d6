"""Architecture search for light backbones; the program is `tools/search_backbone.py`, see docs/light_models.md."""
