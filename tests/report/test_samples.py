"""What goes into a block comes out of it."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
from tests.report.conftest import write_jsonl

from srft.report.packed_samples import align_tokens, pack_samples, pack_streams
from srft.runs.files import read_jsonl
from srft.runs.reading import iterate_samples, read_run


def unpack(block: bytes) -> tuple[dict, np.ndarray, dict[str, np.ndarray]]:
    """The reverse of the packing, from its description alone."""
    raw = gzip.decompress(block)
    size = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + size])
    planes = np.frombuffer(raw[4 + size :], dtype=np.uint8).astype(np.uint32)
    planes = planes.reshape(2 + 2 * len(header["quantities"]), -1)
    values = {
        name: ((planes[2 + 2 * q] << 24) | (planes[3 + 2 * q] << 16))
        .astype(np.uint32)
        .view(np.float32)
        for q, name in enumerate(header["quantities"])
    }
    return header, planes[0] + 256 * planes[1], values


def test_tokens_and_figures_survive_packing(make_run):
    run = read_run(make_run(groups=9, rollouts=2))
    packed = pack_samples([run], 100, 10_000_000)
    records = list(iterate_samples(run))
    header, tokens, values = unpack(packed.blocks[0])
    assert header["quantities"] == ["logprob", "entropy", "loss"]
    at = 0
    for record, group in zip(records, header["groups"], strict=True):
        assert group["prompt"] == record["prompt"]
        for response, length in zip(record["responses"], group["responses"], strict=True):
            here = slice(at, at + length)
            assert [header["vocabulary"][i] for i in tokens[here]] == response["tokens"]
            for name in ("logprob", "entropy", "loss"):
                np.testing.assert_allclose(values[name][here], response[name], rtol=1 / 256)
            at += length
    assert at == len(tokens)


def test_the_index_points_to_every_group(make_run):
    packed = pack_samples([read_run(make_run(groups=250, rollouts=1, tokens=4))], 1000, 10_000_000)
    index = packed.index
    assert packed.shown == packed.total == 250
    assert len(packed.blocks) > 1
    groups = [unpack(block)[0]["groups"] for block in packed.blocks]
    for k in range(250):
        assert groups[index["block"][k]][index["row"][k]]["prompt"][:140] == index["head"][k]
    assert sum(index["responses"]) == len(index["reward"]) == 500


def test_too_many_groups_are_thinned_evenly_keeping_both_ends(make_run):
    packed = pack_samples([read_run(make_run(groups=100, rollouts=1, tokens=4))], 11, 10_000_000)
    assert (packed.total, packed.shown) == (100, 11)
    assert packed.index["source"][0] == "train.jsonl:0"
    assert packed.index["source"][-1] == "train.jsonl:99"


def test_the_blocks_fit_into_their_room(make_run):
    run = read_run(make_run(groups=120, rollouts=3, tokens=60))
    packed = pack_samples([run], 1000, 30_000)
    assert packed.size <= 30_000
    assert 1 < packed.shown < 120


def test_missing_and_infinite_figures_become_unknown():
    record = {
        "step": 1,
        "prompt": "p",
        "responses": [
            {
                "kind": "rollout",
                "text": "ab",
                "tokens": ["a", "b"],
                "logprob": [None, -math.inf],
                "entropy": [0.5],
            },
            {"kind": "rollout", "text": "no tokens"},
        ],
    }
    packed = pack_streams([lambda: iter([record])], 10, 10_000)
    header, tokens, _ = unpack(packed.blocks[0])
    assert header["quantities"] == []
    assert [header["vocabulary"][i] for i in tokens] == ["a", "b", "no tokens"]
    assert packed.index["reward"] == [None, None]


def test_no_samples_at_all_is_no_error(make_run):
    path = make_run()
    (path / "samples.jsonl").unlink()
    packed = pack_samples([read_run(path)], 10, 1000)
    assert (packed.total, packed.shown, packed.blocks) == (0, 0, ())


def test_tokens_get_back_the_spaces_between_them():
    assert align_tokens("a = 3 + 4", ["a", "=", "3", "+", "4"]) == ["a", " =", " 3", " +", " 4"]
    assert align_tokens("ab", ["a", "b", "<eos>"]) == ["a", "b", "<eos>"]
    assert align_tokens("xy", ["x", " ", "y"]) == ["x", " ", "y"]


def test_the_list_shows_what_was_asked_without_the_templates_frame(make_run):
    """Behind a chat template every prompt begins alike."""
    records = list(iterate_samples(read_run(make_run(groups=2, rollouts=1, tokens=4))))[:2]
    for number, record in enumerate(records):
        record["asked"] = f"What is {number} + 1?"
        record["prompt"] = f"<|system|>You are helpful<|user|>{record['asked']}<|assistant|>"
    packed = pack_streams([lambda: iter(records)], 1000, 10_000_000)
    assert packed.index["head"] == ["What is 0 + 1?", "What is 1 + 1?"]
    groups = [g for block in packed.blocks for g in unpack(block)[0]["groups"]]
    assert [g["asked"] for g in groups] == packed.index["head"]
    assert all(g["asked"] in g["prompt"] != g["asked"] for g in groups)


def test_what_all_prompts_of_a_file_begin_with_is_left_out_of_their_heads(make_run):
    run = make_run(groups=6)
    groups = read_jsonl(run / "samples.jsonl")
    same = "State the final answer to the following arithmetic problem:"
    for k, group in enumerate(groups):
        group["asked"] = f"{same} 1{k} + 5 =" if k < 4 else "Once upon a time there were 3."
        group["source"] = f"sums.jsonl:{k}" if k < 4 else f"stories.jsonl:{k}"
    write_jsonl(run / "samples.jsonl", groups)
    heads = pack_samples([read_run(run)], 10, 10**6).index["head"]
    assert heads == [f"… 1{k} + 5 =" for k in range(4)] + ["Once upon a time there were 3."] * 2
