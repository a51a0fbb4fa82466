"""The networks and their configurations. Attribute names follow the published checkpoints.

Letters in shape comments:

    B batch            A audio samples   T latent frames     V CLIP frames   P video frames
    S sync features    N tokens          C latent channels   H heads         D width

Audio ``(B, channels, A)`` and latents ``(B, C, T)`` have channels first. Diffusion transformers work with
channels last, and transpose only at their entry and exit.
"""
