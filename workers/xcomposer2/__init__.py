"""The vLLM plugin for InternLM-XComposer2-4KHD checkpoints, ShareCaptioner-Video among them."""
