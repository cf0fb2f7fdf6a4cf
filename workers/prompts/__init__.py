"""Prompts for the four captioning roles, and the images shown with them.

`trained` contains the exact sentences that ShareCaptioner-Video was trained on. `hierarchical` contains long
instructions for any other chat model. `choice` selects one of the two. The roles depend only on `style.PromptStyle`.
"""
