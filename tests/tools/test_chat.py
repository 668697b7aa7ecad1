"""`sftcore chat`: the run's own answers, streamed, with its adapter and without."""

from __future__ import annotations

import io
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import SFTTrainer
from sftcore.cli.after.chat import command
from sftcore.core.errors import CheckError, ModelError
from sftcore.tools.chat_loop import Chat
from sftcore.tools.chat_model import ChatModel, Reply, Sampling, _Streamer, load_chat_model
from sftcore.tools.saved import open_run
from tests.conftest import alpaca_rows, make_llama, make_tokenizer
from tests.train.test_trainer import config

QUESTION = "say 3"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model that babbles, its logits far enough apart that it does so for sure."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer()
    make_llama(tokenizer, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
    """A run that taught it to say "The answer is", and then to stop."""
    args = config(tmp_path_factory.mktemp("run"), max_steps=60, per_device_train_batch_size=4, learning_rate=2e-2)
    trainer = SFTTrainer(
        str(base), args, train_dataset=Dataset.from_list(alpaca_rows(8)),
        peft_config=LoraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return args.output_dir


@pytest.fixture(scope="module")
def chat_model(run):
    return load_chat_model(open_run(run))


def plain_answer(model, tokenizer, question: str, **turns) -> str:
    """What transformers' own generate says."""
    messages = [
        *([{"role": "system", "content": turns["system"]}] if turns else []),
        {"role": "user", "content": question},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def invoke(*words, text: str | None = None):
    done = CliRunner().invoke(command, [str(word) for word in words], input=text)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# --- One question ---------------------------------------------------------------------------------------------------
def test_a_prompt_prints_the_trained_answer_alone(run, base):
    done = invoke(run, "--prompt", QUESTION, "--max-new-tokens", 20)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run)
    assert done.stdout == plain_answer(model, AutoTokenizer.from_pretrained(run), QUESTION) + "\n"
    assert done.stdout.startswith("The answer is")
    assert "tokens/s" in done.stderr
    assert "cut off at the length limit" not in done.stderr


def test_without_its_adapter_a_run_answers_as_its_base(run, base):
    done = invoke(run, "--prompt", QUESTION, "--no-adapter", "--max-new-tokens", 20)
    wanted = plain_answer(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base), QUESTION)
    assert done.stdout == wanted + "\n"
    assert not wanted.startswith("The answer is")
    assert "cut off at the length limit" in done.stderr


def test_a_dash_reads_the_prompt_from_stdin(run):
    assert invoke(run, "--prompt", "-", text=QUESTION + "\n").stdout == invoke(run, "--prompt", QUESTION).stdout


def test_a_whole_model_answers_too(base):
    wanted = plain_answer(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base), QUESTION)
    assert invoke(base, "--prompt", QUESTION, "--max-new-tokens", 20).stdout == wanted + "\n"


def test_the_system_prompt_reaches_the_template(run, base):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run)
    wanted = plain_answer(model, AutoTokenizer.from_pretrained(run), QUESTION, system="word word word")
    done = invoke(run, "--prompt", QUESTION, "--system", "word word word", "--max-new-tokens", 20)
    assert done.stdout == wanted + "\n"


def test_compare_prints_one_answer_below_the_other_into_a_pipe(run):
    done = invoke(run, "--prompt", QUESTION, "--compare", "--max-new-tokens", 20)
    alone = [invoke(run, "--prompt", QUESTION, "--max-new-tokens", 20, *more).stdout for more in ([], ["--no-adapter"])]
    assert done.stdout == f"with the adapter:\n{alone[0]}\nbase model alone:\n{alone[1]}"


def test_drawing_gives_the_same_again_with_a_seed_and_something_else_with_another(run):
    def drawn(*words):
        return invoke(
            run, "--prompt", QUESTION, "--no-adapter", "--temperature", 2, "--max-new-tokens", 20, *words
        ).stdout

    assert drawn("--seed", 1) == drawn("--seed", 1) != drawn("--seed", 2)


def test_a_top_p_near_nothing_is_the_most_likely_token(run):
    words = (run, "--prompt", QUESTION, "--no-adapter", "--max-new-tokens", 20)
    assert invoke(*words, "--temperature", 1, "--top-p", 1e-6).stdout == invoke(*words).stdout


# --- A conversation -------------------------------------------------------------------------------------------------
def test_lines_of_a_pipe_are_turns_of_one_conversation(run):
    done = invoke(run, "--max-new-tokens", 20, text=f"{QUESTION}\n/help\n\n/nothing\n/exit\nsay 5\n")
    assert done.stdout == invoke(run, "--prompt", QUESTION, "--max-new-tokens", 20).stdout
    assert "/adapter on|off" in done.stderr
    assert 'There is no command "/nothing"' in done.stderr


def chat(chat_model, **options) -> Chat:
    return Chat(chat_model, Sampling(max_new_tokens=20), out=io.StringIO(), err=io.StringIO(), **options)


def test_a_conversation_remembers_its_turns_until_it_is_cleared(chat_model):
    talk = chat(chat_model)
    first = talk.ask(QUESTION)
    talk.ask("say 4")
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    assert talk.turns[1]["content"] == first.text
    talk.command("/clear")
    assert talk.ask(QUESTION).text == first.text
    talk.command("/system word")
    assert talk.turns == []
    assert talk._conversation == [{"role": "system", "content": "word"}]


def test_adapter_and_compare_are_switched_in_the_conversation(chat_model):
    talk = chat(chat_model)
    taught = talk.ask(QUESTION).text
    for words, wanted in (("/adapter off", False), ("/adapter on", True)):
        talk.command("/clear")
        talk.command(words)
        assert (talk.ask(QUESTION).text == taught) is wanted
    talk.command("/clear")
    talk.command("/compare")
    assert talk.ask(QUESTION).text == taught
    assert "base model alone:\n" in talk.out.getvalue()
    assert talk.command("/adapter maybe") == '"/adapter" must be followed by on or off.'
    assert talk.command("/adpter on").startswith('There is no command "/adpter". Did you mean "/adapter"?')


def test_a_full_context_forgets_the_oldest_turns_and_says_so(chat_model):
    small = ChatModel(chat_model.model, chat_model.tokenizer, 100, True, chat_model.stops)
    talk = chat(small, system="word")
    for number in range(6):
        talk.ask(f"say {number}")
    assert "The context is full, so the 2 oldest turns were dropped." in talk.err.getvalue()
    assert talk.turns[0]["role"] == "user"
    assert talk.turns[-2]["content"] == "say 5"
    assert len(talk.turns) < 12


def test_a_question_that_is_too_long_alone_is_refused_and_not_kept(chat_model):
    talk = chat(ChatModel(chat_model.model, chat_model.tokenizer, 40, True, chat_model.stops))
    with pytest.raises(ModelError, match="the model's context holds 40, including the answer"):
        talk.ask("word " * 60)
    assert talk.turns == []


def test_an_error_does_not_end_the_conversation(chat_model):
    talk = chat(ChatModel(chat_model.model, chat_model.tokenizer, 40, True, chat_model.stops))
    lines = iter(["word " * 60, QUESTION])
    talk.run(lambda: next(lines, "/exit"))
    assert "Shorten the prompt" in talk.err.getvalue()
    assert talk.turns[0]["content"] == QUESTION


def test_ctrl_c_stops_an_answer_and_keeps_what_came(chat_model):
    said: list[str] = []

    def stop(piece: str) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    reply = chat_model.answer([{"role": "user", "content": QUESTION}], Sampling(), on_text=stop)
    assert reply.stopped == "user"
    assert "".join(said) == reply.text == "The answer"
    assert "stopped by the user" in reply.sentence


def test_columns_of_a_terminal_show_both_answers(chat_model):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    talk = chat(chat_model, compare=True)
    talk.out = Terminal()
    reply = talk.ask(QUESTION)
    assert reply.text in talk.out.getvalue()
    assert "base model alone" in talk.out.getvalue()


def test_control_characters_of_an_answer_do_not_steer_a_terminal(chat_model):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Evil:
        has_adapter = True

        def answer(self, turns, sampling, *, adapter, on_text):
            on_text("\x1b[2Jboo")
            return Reply("\x1b[2Jboo", 3, 1.0, "end")

    talk = chat(Evil())
    talk.out = Terminal()
    talk.ask(QUESTION)
    assert talk.out.getvalue() == "\\x1b[2Jboo\n"


@pytest.mark.parametrize("text", ["Grüße, 漢字 und 👩‍🚀!", "plain words", "  spaces  "])
def test_streamed_pieces_are_whole_characters_and_join_to_the_answer(text):
    tokenizer = make_tokenizer()
    pieces: list[str] = []
    streamer = _Streamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6, 7]]))
    for token in [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == streamer.text == text
    assert not any("\ufffd" in piece for piece in pieces)


# --- Refused --------------------------------------------------------------------------------------------------------
def test_a_tokenizer_without_chat_template_says_what_to_do(tmp_path):
    tokenizer = make_tokenizer(template=None)
    make_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no chat template.*chat_template_path"):
        invoke(tmp_path, "--prompt", QUESTION)


def test_a_template_that_refuses_a_turn_is_quoted(tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}x"
    tokenizer = make_tokenizer(template=template)
    make_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the chat template refuses this conversation: no system prompts"):
        invoke(tmp_path, "--prompt", QUESTION, "--system", "word")


def test_a_folder_that_does_not_exist_is_named():
    with pytest.raises(ModelError, match=r"\./nowhere: there is no such folder or file"):
        invoke("./nowhere", "--prompt", QUESTION)


def test_a_folder_without_weights_is_named(tmp_path, base):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text((base / name).read_text())
    with pytest.raises(CheckError, match="the folder has no weights"):
        invoke(tmp_path, "--prompt", QUESTION)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", "0.9"], "--top-p has no effect at temperature 0"),
        (["--seed", "1"], "--seed has no effect at temperature 0"),
        (["--compare", "--no-adapter"], "cannot be combined"),
        (["--temperature", "-1"], "is not in the range"),
        (["--top-p", "0", "--temperature", "1"], "is not in the range"),
        (["--max-new-tokens", "0"], "is not in the range"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, words, message):
    done = invoke(run, "--prompt", QUESTION, *words)
    assert done.exit_code == 2
    assert message in click.unstyle(done.stderr)


@pytest.mark.parametrize("option", ["--compare", "--no-adapter"])
def test_a_whole_model_has_no_adapter_to_switch_off(base, option):
    done = invoke(base, "--prompt", QUESTION, option)
    assert done.exit_code == 2
    assert "is a whole model, so it has no adapter to switch off" in done.stderr


def test_an_empty_stdin_is_no_prompt(run):
    assert "stdin, but stdin is empty" in invoke(run, "--prompt", "-", text="\n").stderr


@pytest.mark.parametrize("verb", ["merge", "chat"])
def test_help_imports_nothing_heavy(verb):
    code = (
        f"import sys; sys.argv = ['sftcore', '{verb}', '--help']\n"
        "from sftcore.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'rich', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
