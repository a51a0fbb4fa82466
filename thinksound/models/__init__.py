"""The three networks we own. Attribute names follow the published checkpoints.

Letters used in shape comments everywhere:

    B batch        A audio samples     T latent frames   V picture (MetaCLIP) frames
    S sync features  N text tokens     C latent channels  H heads    D width

Audio is ``(B, 2, A)`` and latents are ``(B, C, T)``, channels first. The transformer turns to
channels last at its entry and back at its exit, nowhere else.
"""
