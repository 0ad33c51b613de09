from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.cases import DEMO, Case
from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.drafting import PACKABLE, PROMPT, correlation, pass_over, write_pair
from helpers.numerics_oracles import same_bits
from helpers.packed_files import flip
from penstock import LLM, SamplingParams
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import Kernels
from penstock.errors import CheckpointError, ChecksumError, UsageError
from penstock.memory.budget import Budget
from penstock.options import OpenOptions
from penstock.packed_format.tensor import PackedTensor
from penstock.safetensors_header import read_header
from penstock.speculate.draft_model import DraftModel, Form
from penstock.speculate.drafters import draft_drafter

FORMS: tuple[Form, ...] = ("whole", "4 bits")
REMEDY = "A draft has to have the target's tokenizer: give a smaller model of the same family."
PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("model"))


def exact_logits(path: Path) -> np.ndarray:
    with LLM(path, OpenOptions(threads=1, draft="none")) as llm:
        return llm.logits(PROMPT)


@pytest.mark.parametrize("packed", [False, True])
class TestForms:
    def test_whole(self, pair: tuple[Path, Path], packed: bool) -> None:
        """The bits of the model as any other would compute them; nothing is read any more."""
        draft = DraftModel(pair[packed], Kernels(1), "bf16")
        model = draft.load("whole")
        assert same_bits(pass_over(model), exact_logits(pair[0]))
        before = draft._weights.totals.bytes_read
        pass_over(model)
        assert draft._weights.totals.bytes_read == before
        draft.close()

    def test_4_bits(self, pair: tuple[Path, Path], packed: bool) -> None:
        draft = DraftModel(pair[packed], Kernels(1), "bf16")
        model = draft.load("4 bits")
        assert 0.9 < correlation(pass_over(model), exact_logits(pair[0])) < 1
        draft.close()

    @pytest.mark.parametrize("form", FORMS)
    def test_what_it_takes_is_known_before(self, pair: tuple[Path, Path], packed: bool, form: Form) -> None:
        draft = DraftModel(pair[packed], Kernels(1), "bf16")
        assert draft.nbytes == 0
        likely = draft.likely_bytes(form)
        draft.load(form)
        assert 0.8 * likely < draft.nbytes <= likely
        draft.close()

    def test_4_bits_take_less(self, pair: tuple[Path, Path], packed: bool) -> None:
        draft = DraftModel(pair[packed], Kernels(1), "bf16")
        ring = draft._ring.nbytes
        assert draft.likely_bytes("4 bits") - ring < 0.6 * (draft.likely_bytes("whole") - ring)
        draft.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [{"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_other_shapes(tmp_path: Path, form: Form, change: dict[str, bool]) -> None:
    raw, _ = write_pair(tmp_path, **change)
    draft = DraftModel(raw, Kernels(1), "bf16")
    assert correlation(pass_over(draft.load(form)), exact_logits(raw)) > 0.9
    draft.close()


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_types_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    path = Case(PACKABLE, dtype).write(tmp_path / "model")
    draft = DraftModel(path, Kernels(1), "bf16")
    assert same_bits(pass_over(draft.load("4 bits")), exact_logits(path))
    draft.close()


@pytest.mark.parametrize("form", FORMS)
def test_threads_change_no_bit(pair: tuple[Path, Path], form: Form) -> None:
    found = []
    for threads in (1, 2):
        draft = DraftModel(pair[0], Kernels(threads), "bf16")
        found.append(pass_over(draft.load(form)))
        draft.close()
    assert same_bits(*found)


class TestTokens:
    """A draft of other tokens is refused before it is loaded."""

    def refusal(self, target: Path | str, draft: Path | str) -> UsageError:
        with pytest.raises(UsageError) as caught:
            LLM.open(target, draft=str(draft))
        return caught.value

    def test_a_vocabulary_of_another_size(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        draft = Case(PACKABLE | {"vocab_size": 701}).write(tmp_path / "draft")
        error = self.refusal(pair[0], draft)
        assert error.problem == f"The draft {draft} has a vocabulary of 701 tokens, and the model has 700."
        assert error.remedy == REMEDY

    def demo_like(self, path: Path, change: bool) -> Path:
        """A tiny model with the demo's tokenizer, or one in which two tokens have changed places."""
        config = tiny_config(vocab_size=4096)
        write_checkpoint(path, config)
        for file in DEMO.glob("tokenizer*"):
            shutil.copy(file, path)
        if change:
            content = json.loads((path / "tokenizer.json").read_text())
            vocab = content["model"]["vocab"]
            one, other = (token for token, index in vocab.items() if index in (2000, 2001))
            vocab[one], vocab[other] = vocab[other], vocab[one]
            (path / "tokenizer.json").write_text(json.dumps(content))
        return path

    def test_another_tokenizer(self, tmp_path: Path) -> None:
        draft = self.demo_like(tmp_path / "draft", change=True)
        error = self.refusal("demo", draft)
        assert error.problem == f"The draft {draft} has another tokenizer than the model."
        assert error.remedy == REMEDY

    def test_the_same_tokenizer(self, tmp_path: Path) -> None:
        draft = self.demo_like(tmp_path / "draft", change=False)
        with LLM.open("demo", draft=str(draft), threads=1) as llm:
            assert llm.draft is not None

    def test_a_tokenizer_that_is_written_otherwise(self, tmp_path: Path) -> None:
        """Its tokens count, not the bytes of its file."""
        draft = self.demo_like(tmp_path / "draft", change=False)
        content = json.loads((draft / "tokenizer.json").read_text())
        (draft / "tokenizer.json").write_text(json.dumps(content, indent=1))
        with LLM.open("demo", draft=str(draft), threads=1) as llm:
            assert llm.draft is not None

    def test_one_without_a_tokenizer(self, tmp_path: Path) -> None:
        """The size of its vocabulary has to do."""
        draft = self.demo_like(tmp_path / "draft", change=False)
        (draft / "tokenizer.json").unlink()
        with LLM.open("demo", draft=str(draft), threads=1) as llm:
            assert llm.draft is not None


class TestOtherVocabularies:
    """Models of a family that fill up their vocabularies to other sizes."""

    def padded(self, path: Path, rows: int) -> Path:
        """The demo model with `rows` more tokens, which its tokenizer does not have, or with fewer."""
        header = read_header(DEMO / "model.safetensors")
        whole = np.fromfile(DEMO / "model.safetensors", np.uint8)
        tensors = {
            name: whole[tensor.begin : tensor.end].view(np.uint16).reshape(tensor.shape).copy()
            for name, tensor in header.tensors.items()
        }
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                table = tensors[name]
                tensors[name] = np.vstack([table, table[:rows]]) if rows > 0 else table[:rows]
        config = json.loads((DEMO / "config.json").read_text())
        config["vocab_size"] += rows
        write_checkpoint(path, config, tensors=tensors)
        for file in DEMO.glob("tokenizer*"):
            shutil.copy(file, path)
        return path

    @pytest.mark.parametrize(("target", "draft"), [(0, 64), (64, 0), (0, -100)])
    @pytest.mark.parametrize("temperature", [0, 0.9])
    def test_guess_for_each_other(self, tmp_path: Path, target: int, draft: int, temperature: float) -> None:
        """Tokens that the draft does not have are there in prompts, too."""
        own, other = self.padded(tmp_path / "own", target), self.padded(tmp_path / "other", draft)
        last = json.loads((own / "config.json").read_text())["vocab_size"] - 1
        prompts = [PROMPT[:9], [*PROMPT[:5], last, *PROMPT[5:9]]]
        params = SamplingParams(temperature=temperature, max_tokens=24, ignore_eos=True, seed=3)
        with LLM.open(own, draft="none", threads=1) as llm:
            expected = llm.generate(prompts, params)
        with LLM.open(own, draft=str(other), threads=1, draft_nodes=8) as llm:
            llm.engine.speculator.drafters = [d for d in llm.engine.speculator.drafters if d.name == "draft"]
            guessed = llm.generate(prompts, params)
        assert [output.token_ids for output in guessed] == [output.token_ids for output in expected]
        assert guessed[0].stats.passes < expected[0].stats.passes

    def test_ids_past_either_are_not_guessed(self, tmp_path: Path) -> None:
        other = self.padded(tmp_path / "other", 64)  # a copy of each of the first rows: as likely as those
        vocab = json.loads((DEMO / "config.json").read_text())["vocab_size"]
        drafter = draft_drafter(DraftModel(other, Kernels(1), "bf16"), "whole", vocab)
        assert drafter._vocab == vocab


class TestBadDrafts:
    def test_there_is_none(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError) as caught:
            LLM.open(pair[0], draft=str(tmp_path / "nothing"))
        assert caught.value.problem.startswith(f"{tmp_path / 'nothing'}: no such directory")

    def test_an_empty_directory(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            LLM.open(pair[0], draft=str(tmp_path))

    @pytest.mark.parametrize("form", FORMS)
    def test_a_flipped_bit(self, tmp_path: Path, form: Form) -> None:
        """A draft only guesses, and is read under checksums all the same."""
        _, packed = write_pair(tmp_path)
        name = "model.layers.1.mlp.up_proj.weight"
        tensor = open_checkpoint(packed).tensors[name]
        assert isinstance(tensor, PackedTensor)
        flip(packed / "model.safetensors", tensor.fine_extent(0, 1).offset + 3000)
        draft = DraftModel(packed, Kernels(1), "bf16")
        with pytest.raises(ChecksumError, match=name):
            draft.load(form)
        draft.close()

    @pytest.mark.parametrize("nodes", [-1, 4097, 2.5, "many"])
    def test_a_number_of_guesses_out_of_range(self, pair: tuple[Path, Path], nodes: object) -> None:
        with pytest.raises(UsageError) as caught:
            LLM.open(pair[0], draft_nodes=nodes)  # type: ignore[arg-type]
        assert caught.value.problem == f"draft_nodes={nodes!r} is out of range."
        assert caught.value.remedy == "Give a whole number from 0 to 4096."


class TestInTheModel:
    def names(self, llm: LLM) -> list[str]:
        return [drafter.name for drafter in llm.engine.speculator.drafters]

    def test_which_drafters_there_are(self, pair: tuple[Path, Path]) -> None:
        raw, packed = pair
        with LLM.open(raw, threads=1) as llm:
            assert "lookup" in self.names(llm)
            assert not {"coarse", "draft"} & set(self.names(llm))
        with LLM.open(packed, threads=1) as llm:
            assert {"lookup", "coarse"} <= set(self.names(llm))
        with LLM.open(packed, threads=1, draft=str(raw)) as llm:
            assert {"lookup", "coarse", "draft"} <= set(self.names(llm))
        with LLM.open(packed, threads=1, draft="none") as llm:
            assert self.names(llm) == []
            assert llm.weights.draft_bytes == 0
        with LLM.open(packed, threads=1, draft=str(raw), draft_nodes=0) as llm:
            assert self.names(llm) == []
            assert llm.draft is None

    @pytest.mark.parametrize("form", FORMS)
    def test_a_drafter_of_either_form(self, pair: tuple[Path, Path], form: Form) -> None:
        """Asked for the model itself, it is right nearly always, and rounded, often."""
        with LLM(pair[0], OpenOptions(threads=1, draft="none")) as llm:
            [expected] = llm.generate([PROMPT], PARAMS)
        draft = DraftModel(pair[1], Kernels(1), "bf16")
        drafter = draft_drafter(draft, form, 700)
        with LLM(pair[0], OpenOptions(threads=1, draft_nodes=8)) as llm:
            llm.engine.speculator.drafters = [drafter]
            [output] = llm.generate([PROMPT], PARAMS)
        assert output.token_ids == expected.token_ids
        assert output.stats.passes < (8 if form == "whole" else 16)
        draft.close()

    @pytest.mark.parametrize("fits", [True, False])
    def test_where_not_both_models_fit_it_is_kept_in_4_bits(
        self, pair: tuple[Path, Path], fits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw, packed = pair
        asked: list[int] = []
        monkeypatch.setattr(Budget, "holds_all", lambda budget: asked.append(budget.draft) or fits)
        with LLM(packed, OpenOptions(threads=1, draft=raw, draft_nodes=8)) as llm:
            assert llm.draft is not None
            whole, rounded = (llm.draft.likely_bytes(form) for form in FORMS)
            assert asked == [llm.memory.budget.draft - llm.draft.nbytes + whole]
            assert llm.draft.nbytes <= (whole if fits else rounded)
            assert (llm.draft.nbytes > rounded) == fits

    def test_it_is_dropped(self, pair: tuple[Path, Path]) -> None:
        """Its memory goes back to the weights, and text goes on."""
        raw, packed = pair
        with LLM(packed, OpenOptions(threads=1, draft=raw, draft_nodes=4)) as llm:
            [expected] = llm.generate([PROMPT], PARAMS)
            assert llm.draft is not None
            budget, nbytes = llm.memory.budget, llm.draft.nbytes
            llm._runtime.drop_draft()
            assert llm.draft is None
            assert llm.memory.budget.draft == budget.draft - nbytes
            llm._runtime.drop_draft()  # once is enough
            assert llm.memory.budget.draft == budget.draft - nbytes
            llm.engine.speculator.drafters = [d for d in llm.engine.speculator.drafters if d.name != "draft"]
            assert llm.generate([PROMPT], PARAMS)[0].token_ids == expected.token_ids


def test_shapes_are_told_before_anything_is_read(pair: tuple[Path, Path]) -> None:
    draft = DraftModel(pair[0], Kernels(1), "f32")
    assert draft.config.vocab_size == 700
    assert draft.kv_shape.dtype == "f32"
    assert draft._weights.totals.bytes_read == 0
    draft.close()
