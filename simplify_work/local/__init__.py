"""The robot's side of a remote policy: `PolicyClient`, and `predict_from_server` as its short form."""

from simplify_work.local.client import ActionChunk, PolicyClient
from simplify_work.local.predict import predict_from_server

__all__ = ["ActionChunk", "PolicyClient", "predict_from_server"]
