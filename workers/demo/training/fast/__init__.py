"""Training of the fast role: new layers that read columns of keyframes, inside a model that stays as it is."""
