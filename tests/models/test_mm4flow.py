"""MM4flow against what the published code computes, and its encoder against the public BERT at other sizes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import BYTES_VOCABULARY, encode, pad
from tapline.models.flow import Flow
from tapline.models.mm4flow import MaskedEncoder, Mm4flow
from tests.paths import DATA

MM4FLOW = DATA / "mm4flow"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference():
    flows = json.loads((MM4FLOW / "mm4flow_flows.json").read_text())
    return flows["config"], flows["flows"], load_file(MM4FLOW / "mm4flow_expected.safetensors")


def tokens_of(flows):
    batch = encode(
        [
            Flow("x", 0, 0, "::1", 1, "::2", 2, "tcp", 0, 0, f["ps"], bytes.fromhex(f["fwd"]), bytes.fromhex(f["bwd"]))
            for f in flows
        ]
    )
    rows = np.arange(len(batch))
    return (
        pad(batch.ps_tokens, batch.ps_offsets, rows, 256),
        pad(batch.bytes_tokens, batch.bytes_offsets, rows, 512),
        pad(batch.bytes_types, batch.bytes_offsets, rows, 512),
    )


def test_tokens_are_the_published_ones(reference):
    _, flows, expected = reference
    ps, content, types = tokens_of(flows)
    np.testing.assert_array_equal(ps, expected["ps"].numpy())
    np.testing.assert_array_equal(content, expected["raw"].numpy())
    np.testing.assert_array_equal(types, expected["raw_token_type_ids"].numpy())
    np.testing.assert_array_equal(ps != 0, expected["ps_attention_mask"].numpy() != 0)


def test_logits_and_attention_are_the_published_ones(reference):
    config, flows, expected = reference
    network = Mm4flowNetwork(
        config["d_model"], config["n_layer"], config["n_head"], config["dim_ff"], config["num_classes"]
    )
    model = Mm4flow(network).eval()
    weights = {name: value.float() for name, value in load_file(MM4FLOW / "mm4flow_weights.safetensors").items()}
    model.load_state_dict(weights)  # strict: every published name, no other
    with torch.inference_mode():
        output = model(*map(torch.from_numpy, tokens_of(flows)))
    torch.testing.assert_close(output.logits, expected["logits"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.ps_attention, expected["ps_attn_row0"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.bytes_attention, expected["raw_attn_row0"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.ps_attention.sum(1), torch.ones(len(flows)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("d_model", "n_layer", "n_head", "dim_ff"), [(48, 3, 6, 96), (768, 2, 12, 3072)])
def test_encoder_is_the_public_bert(d_model, n_layer, n_head, dim_ff):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=BYTES_VOCABULARY,
        hidden_size=d_model,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=dim_ff,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    public = BertForMaskedLM(config).eval()
    ours = MaskedEncoder(BYTES_VOCABULARY, 512, Mm4flowNetwork(d_model, n_layer, n_head, dim_ff, 2)).eval()
    known = ours.state_dict().keys()
    ours.load_state_dict({name: value for name, value in public.state_dict().items() if name in known})
    tokens = torch.randint(7, BYTES_VOCABULARY, (3, 40))
    tokens[1, 25:] = 0
    types = torch.zeros_like(tokens)
    types[:, 10:] = 1
    real = tokens != 0
    with torch.inference_mode():
        hidden = ours(tokens, types)
        logits = ours.cls.predictions(hidden)
        expected = public(input_ids=tokens, token_type_ids=types, attention_mask=real.long(), output_hidden_states=True)
    torch.testing.assert_close(hidden[real], expected.hidden_states[-1][real], atol=TOLERANCE, rtol=1e-4)
    torch.testing.assert_close(logits[real], expected.logits[real], atol=TOLERANCE, rtol=1e-4)
