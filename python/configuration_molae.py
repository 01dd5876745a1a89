"""Configuration of a checkpoint that molae converted (https://www.npmjs.com/package/molae)."""

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# What the converted config.json has beyond that of its source.
_OWN_FIELDS = ("model_type", "base_model_type", "molae", "auto_map", "architectures")


class MolaeConfig(PreTrainedConfig):
    """The source's fields, with `base_model_type` and the `molae` block that says which experts share a latent space."""

    model_type = "molae"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        config = super().from_dict(config_dict, **kwargs)
        # As in the file: PreTrainedConfig fills in and rearranges what it takes for fields of its own.
        result = config[0] if isinstance(config, tuple) else config
        result.stored = dict(config_dict)
        return config

    def base_config(self):
        """The configuration of the source's own class."""
        stored = self.stored
        fields = {name: value for name, value in stored.items() if name not in _OWN_FIELDS}
        base = CONFIG_MAPPING[stored["base_model_type"]].from_dict(fields)
        base.molae = stored["molae"]
        return base
