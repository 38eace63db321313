"""Publishing on the Hugging Face Hub, and fetching from there."""

from hf_vit.hub.publish import Destination, HubError, pull, push

__all__ = ["Destination", "HubError", "pull", "push"]
