"""A flow's decoder and encoder: which values go to which topic. The same for live and replay."""

from __future__ import annotations

from streamai.feature import duration_ns
from streamai.flow import Flow
from streamai.scored import Scored
from streamai.wire.json import Decoder
from streamai.wire.output import Encoder, Values


class Codec:
    """Bytes to events and back, for one engine: its catalogue, its feature names, its digests.

    decoder  wire.json.Decoder of the flow's schema
    """

    def __init__(self, flow: Flow, engine) -> None:
        self.flow = flow
        self.decoder = Decoder(
            flow.schema, engine.catalogue, max_skew_ns=duration_ns(flow.max_skew), k_max=flow.answer_max
        )
        self._encoder = Encoder(
            flow.source,
            feature_names=engine.feature_names,
            plan=engine.plan_digest,
            model=None if flow.model is None else engine.model_digest,
            catalogue=engine.catalogue,
            catalogue_digest=None if engine.catalogue is None else engine.catalogue_digest,
            horizons=flow.horizons,
            schema=flow.schema,
            tables=engine.others_digest,
        )
        self._encode = {}  # topic -> method
        if "result" in flow.topics:
            self._encode[flow.topics["result"]] = self._result()
        if flow.publish_features or not self._encode:
            self._encode[flow.topics["features"]] = self._encoder.features

    def _result(self):
        if self.flow.scorer is not None:
            return self._encoder.scores
        return self._encoder.recommendations if self.flow.catalogue is not None else self._encoder.signals

    def encode(self, scored: Scored) -> dict[str, Values]:
        """Topic -> (values, indices i8[m]): value j belongs to event indices[j] of the step."""
        return {topic: run(scored) for topic, run in self._encode.items()}
