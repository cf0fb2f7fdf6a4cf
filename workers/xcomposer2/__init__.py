"""The vLLM plugin for InternLM-XComposer2-4KHD checkpoints, ShareCaptioner-Video among them.

Reading order: `plugin` -> `checkpoint` -> `config` -> `tokenizer` -> `renderer` -> `hd_tiling` -> `image` ->
`processor` -> `plora` -> `weights` -> `encoder_graph` -> `model`. The plugin imports nothing else from this repository,
and importing the package loads neither torch nor vLLM. `register` is the entry point `vllm.general_plugins`.
"""

from workers.xcomposer2.plugin import register as register
