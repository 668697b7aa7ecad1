"""Small made-up rows in the shapes of public data sets, with what becomes of each: docs/how-to/formats.md shows them.

`by` is "auto", the line that is offered and works, or words of the refusal. What is expected is written as turns:
"user: words", with a star where the assistant's words and the end of its turn are trained (`assistant*: words`), or as
one text with the trained part between « and ».
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

AUTO = "auto"


@frozen
class Shape:
    """A shape by the data sets that have it."""

    group: str
    name: str
    row: dict[str, Any]
    by: str
    expected: tuple[str, ...]


U, A = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
H, G = {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}
ONE = ("user: 2 + 2?", "assistant*: 4")
TWO = (*ONE, "user: And 3?", "assistant*: 5")
SYS = ("system: Be brief.", *ONE)
CALL = {"name": "add", "arguments": {"a": 2}}
SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLED = ("user: 2 + 2?", 'assistant*: <call>add {"a": 2}</call>')
PC = "format: {prompt-completion: {prompt: %s, completion: %s}}"


def alpaca(instruction: str, output: str, **more: str) -> str:
    """The line that maps columns to the alpaca format."""
    columns = {"instruction": instruction, "output": output, **more}
    return f"format: {{alpaca: {{{', '.join(f'{key}: {name}' for key, name in columns.items())}}}}}"


def dialogue(column: str) -> str:
    return f"format: {{dialogue: {{turns: {column}}}}}"


PREFERENCE = "format: {preference: {use: chosen}}"


def _shapes() -> list[tuple[Any, ...]]:
    group = "Conversations"
    found: list[tuple[Any, ...]] = [
        (group, "OpenAI, TRL: messages", {"messages": [U, A]}, AUTO, ONE),
        (group, "messages with a system turn", {"messages": [{"role": "system", "content": "Be brief."}, U, A]}, AUTO, SYS),
        (group, "messages beside an id and a source (UltraChat 200k, Tulu 3)", {"prompt_id": "1", "messages": [U, A], "source": "x"}, AUTO, ONE),
        (group, "messages with tools and calls", {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}], "tools": [SCHEMA]}, AUTO, CALLED),
        (group, "messages with reasoning", {"messages": [U, {**A, "reasoning_content": "Two twos."}]}, AUTO, ("user: 2 + 2?", "assistant*: <think>Two twos.</think>4")),
        (group, "ShareGPT: conversations", {"conversations": [H, G]}, AUTO, ONE),
        (group, "ShareGPT with id and system", {"id": "1", "system": "Be brief.", "conversations": [H, G]}, AUTO, SYS),
        (group, "conversations with role and content", {"conversations": [U, A]}, AUTO, ONE),
        (group, "LLaMA-Factory: calls as turns, tools as JSON", {"conversations": [H, {"from": "function_call", "value": json.dumps(CALL)}], "tools": json.dumps([SCHEMA])}, AUTO, CALLED),
        (group, "LIMA: texts in turn", {"conversations": ["2 + 2?", "4"], "source": "stackexchange"}, AUTO, ONE),
        (group, "UltraChat: data as texts in turn", {"id": "0", "data": ["2 + 2?", "4", "And 3?", "5"]}, AUTO, TWO),
        (group, "Capybara: pairs of input and output", {"source": "x", "conversation": [{"input": "2 + 2?", "output": "4"}, {"input": "And 3?", "output": "5"}]}, AUTO, TWO),
        (group, "MOSS: pairs of human and assistant", {"conversation_id": 1, "category": "x", "conversation": [{"human": "2 + 2?", "assistant": "4"}]}, AUTO, ONE),
        (group, "MOSS with turns by number", {"conversation_id": 1, "chat": {"turn_1": {"Human": "<|Human|>: 2 + 2?<eoh>\n", "MOSS": "<|MOSS|>: 4<eom>\n"}}}, AUTO, ONE),
        (group, "pairs as lists of two", {"dialog": [["2 + 2?", "4"], ["And 3?", "5"]]}, AUTO, TWO),
        (group, "conversation with role and content (Bitext, LMSYS-Chat-1M)", {"conversation_id": "1", "model": "x", "conversation": [U, A], "turn": 1, "language": "en"}, AUTO, ONE),
        (group, "dialogue with speaker and text", {"dialogue": [{"speaker": "human", "text": "2 + 2?"}, {"speaker": "bot", "text": "4"}]}, AUTO, ONE),
        (group, "items with from and value (ShareGPT 90k)", {"id": "1", "items": [H, G]}, AUTO, ONE),
        (group, "a dialogue beside texts", {"Dialog": [U, A], "text": "x", "id": 1}, AUTO, ("«x<|im_end|>»",)),
        (group, "Conversation in capitals", {"Conversation": [U, A]}, dialogue("Conversation"), ONE),
        (group, "conversations as JSON text", {"conversations": json.dumps([H, G])}, AUTO, ONE),
        (group, "conversation as JSON text", {"conversation": json.dumps([U, A])}, AUTO, ONE),
        (group, "Glaive: system and chat as a transcript", {"system": "SYSTEM: Be brief.", "chat": "USER: 2 + 2?\n\n\nASSISTANT: 4 <|endoftext|>\n\n\n"}, AUTO, SYS),
        (group, "Glaive with a function's response", {"system": "", "chat": 'USER: 2 + 2?\n\nASSISTANT: <functioncall> {"name": "add"} <|endoftext|>\n\nFUNCTION RESPONSE: 4\n\nASSISTANT: 4'}, AUTO, ("user: 2 + 2?", 'assistant*: <functioncall> {"name": "add"}', "tool: 4", "assistant*: 4")),
        (group, "a transcript with Human and Assistant", {"conversation": "\n\nHuman: 2 + 2?\n\nAssistant: 4"}, AUTO, ONE),
        (group, "a transcript in which nobody speaks", {"conversation": "2 + 2 is 4."}, "is a text in which nobody is marked as speaking", ()),
        (group, "OpenAssistant's trees", {"message_tree_id": "1", "tree_state": "ready", "prompt": {"role": "prompter", "text": "2 + 2?", "replies": [{"role": "assistant", "text": "5", "rank": 1, "replies": []}, {"role": "assistant", "text": "4", "rank": 0, "replies": [{"role": "prompter", "text": "And 3?", "replies": []}]}]}}, AUTO, ONE),
        (group, "OpenAssistant's flat rows", {"message_id": "1", "parent_id": None, "text": "2 + 2?", "role": "prompter", "message_tree_id": "1"}, "each row is one message of a tree", ()),
        (group, "turns with the speaker as key", {"messages": [{"user": "2 + 2?"}, {"assistant": "4"}]}, AUTO, ONE),
        (group, "turns as pairs of role and text (LangChain)", {"conversation": [["human", "2 + 2?"], ["ai", "4"]]}, AUTO, ONE),
        (group, "messages that end with the user, beside the answer", {"messages": [U], "response": "4"}, "may hold the answer", ()),
        (group, "a conversation with its system prompt beside it", {"system_prompt": "Be brief.", "conversation": [U, A]}, AUTO, SYS),
        (group, "parts of which some are not trained (Axolotl)", {"messages": [U, {"role": "assistant", "content": [{"type": "text", "text": "5 or ", "train": False}, {"type": "text", "text": "4"}]}]}, AUTO, ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n5 or «4<|im_end|>»\n",)),
        (group, "training_detail (Axolotl)", {"messages": [U, {**A, "content": "5 or 4", "training_detail": [{"begin_offset": 0, "end_offset": 4, "train": False}, {"begin_offset": 5, "end_offset": 5, "train": True}]}]}, AUTO, ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n5 or «4<|im_end|>»\n",)),
        (group, "Magpie: conversations beside instruction and response", {"conversation_id": "1", "instruction": "2 + 2?", "response": "4", "conversations": [H, G], "gen_input_configs": {}}, AUTO, ONE),
    ]  # fmt: skip
    group = "A prompt and its answer"
    found += [
        (group, "prompt and completion as texts", {"prompt": "2 + 2 =", "completion": " 4"}, AUTO, ("2 + 2 =« 4<|im_end|>»",)),
        (group, "prompt and completion as messages", {"prompt": [U], "completion": [A]}, AUTO, ONE),
        (group, "prompt as messages, completion as a text", {"prompt": [U], "completion": "4"}, AUTO, ONE),
        (group, "prompt as messages beside a system prompt", {"system": "Be brief.", "prompt": [U], "completion": [A]}, AUTO, SYS),
        (group, "question with a history of messages", {"question": "And 3?", "answer": "5", "history": [U, A]}, alpaca("question", "answer"), ("user: 2 + 2?", "assistant: 4", "user: And 3?", "assistant*: 5")),
        (group, "question with an answer that is a number", {"question": "2 + 2?", "answer": 4}, 'the column "answer" holds a number', ()),
        (group, "question with a document", {"document": "CREATE", "question": "2 + 2?", "answer": "4"}, alpaca("question", "answer", input="document"), ("user: 2 + 2?\nCREATE", "assistant*: 4")),
        (group, "prompt as a text, completion as messages", {"prompt": "2 + 2?", "completion": [A]}, AUTO, ONE),
        (group, "Alpaca", {"instruction": "2 + 2?", "input": "", "output": "4"}, AUTO, ONE),
        (group, "Alpaca with an input", {"instruction": "Add.", "input": "2 + 2?", "output": "4"}, AUTO, ("user: Add.\n2 + 2?", "assistant*: 4")),
        (group, "Alpaca with its text", {"instruction": "2 + 2?", "input": "", "output": "4", "text": "Below is …"}, "2 formats recognise", ()),
        (group, "Alpaca with an empty instruction", {"instruction": "", "input": "2 + 2?", "output": "4"}, AUTO, ONE),
        (group, "Alpaca with system and history (LLaMA-Factory)", {"instruction": "And 3?", "input": "", "output": "5", "system": "Be brief.", "history": [["2 + 2?", "4"]]}, AUTO, ("system: Be brief.", "user: 2 + 2?", "assistant: 4", "user: And 3?", "assistant*: 5")),
        (group, "Dolly: instruction, context, response", {"instruction": "Add.", "context": "2 + 2?", "response": "4", "category": "x"}, alpaca("instruction", "response", input="context"), ("user: Add.\n2 + 2?", "assistant*: 4")),
        (group, "OpenOrca: system_prompt, question, response", {"id": "1", "system_prompt": "Be brief.", "question": "2 + 2?", "response": "4"}, alpaca("question", "response", system="system_prompt"), SYS),
        (group, "Orca: question, response, system", {"system": "Be brief.", "question": "2 + 2?", "response": "4"}, alpaca("question", "response"), SYS),
        (group, "SQL with context: question, context, answer", {"question": "2 + 2?", "context": "CREATE", "answer": "4"}, alpaca("question", "answer", input="context"), ("user: 2 + 2?\nCREATE", "assistant*: 4")),
        (group, "query, response, history (Firefly, ms-swift)", {"query": "And 3?", "response": "5", "history": [["2 + 2?", "4"]]}, alpaca("query", "response"), ("user: 2 + 2?", "assistant: 4", "user: And 3?", "assistant*: 5")),
        (group, "MetaMathQA: query, response, type", {"type": "x", "query": "2 + 2?", "original_question": "x", "response": "4"}, alpaca("query", "response"), ONE),
        (group, "question, reasoning, answer", {"question": "2 + 2?", "reasoning": "Two twos.", "answer": "4"}, alpaca("question", "answer", reasoning="reasoning"), ("user: 2 + 2?", "assistant*: <think>Two twos.</think>4")),
        (group, "Question, Complex_CoT, Response (medical-o1)", {"Question": "2 + 2?", "Complex_CoT": "Two twos.", "Response": "4"}, alpaca("Question", "Response", reasoning="Complex_CoT"), ("user: 2 + 2?", "assistant*: <think>Two twos.</think>4")),
        (group, "GSM8K: question, answer", {"question": "2 + 2?", "answer": "4"}, alpaca("question", "answer"), ONE),
        (group, "Question and Answer in capitals", {"Question": "2 + 2?", "Answer": "4"}, alpaca("Question", "Answer"), ONE),
        (group, "Prompt and Completion in capitals", {"Prompt": "2 + 2?", "Completion": "4"}, alpaca("Prompt", "Completion"), ONE),
        (group, "NuminaMath: problem, solution", {"source": "x", "problem": "2 + 2?", "solution": "4"}, alpaca("problem", "solution"), ONE),
        (group, "OpenMathInstruct: problem, generated_solution", {"problem": "2 + 2?", "generated_solution": "4"}, "no installed format recognises", ()),
        (group, "FLAN, P3: inputs, targets", {"inputs": "2 + 2?", "targets": "4"}, alpaca("inputs", "targets"), ONE),
        (group, "input and output", {"input": "2 + 2?", "output": "4"}, alpaca("input", "output"), ONE),
        (group, "user and assistant", {"user": "2 + 2?", "assistant": "4"}, alpaca("user", "assistant"), ONE),
        (group, "human and assistant", {"human": "2 + 2?", "assistant": "4"}, alpaca("human", "assistant"), ONE),
        (group, "human and bot", {"human": "2 + 2?", "bot": "4"}, alpaca("human", "bot"), ONE),
        (group, "system, user and assistant", {"system": "Be brief.", "user": "2 + 2?", "assistant": "4"}, alpaca("user", "assistant"), SYS),
        (group, "prompt and response", {"prompt": "2 + 2?", "response": "4"}, alpaca("prompt", "response"), ONE),
        (group, "instruction and response (CodeAlpaca, Magicoder)", {"instruction": "2 + 2?", "response": "4"}, alpaca("instruction", "response"), ONE),
        (group, "instruction, input and response", {"instruction": "Add.", "input": "2 + 2?", "response": "4"}, alpaca("instruction", "response"), ("user: Add.\n2 + 2?", "assistant*: 4")),
        (group, "context and response (counselling)", {"Context": "2 + 2?", "Response": "4"}, alpaca("Context", "Response"), ONE),
        (group, "context, question and answers as mappings (SQuAD)", {"context": "x", "question": "2 + 2?", "answers": {"text": ["4"], "answer_start": [0]}}, "no installed format recognises", ()),
        (group, "question with answers that are lists", {"question": "2 + 2?", "answer": ["4", "four"]}, "no installed format recognises", ()),
        (group, "xLAM: query, answers, tools as JSON texts", {"id": 0, "query": "2 + 2?", "answers": json.dumps([CALL]), "tools": json.dumps([{"name": "add", "description": "d", "parameters": {"a": {"type": "int"}}}])}, AUTO, CALLED),
        (group, "xLAM with lists", {"query": "2 + 2?", "answers": [CALL], "tools": [SCHEMA]}, AUTO, CALLED),
        (group, "translations", {"translation": {"en": "two", "de": "zwei"}}, "no installed format recognises", ()),
        (group, "summaries: document and summary", {"document": "x", "summary": "y"}, "no installed format recognises", ()),
    ]  # fmt: skip
    group = "Texts and tokens"
    found += [
        (group, "text", {"text": "2 + 2 is 4."}, AUTO, ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "text with a class label (IMDB)", {"text": "2 + 2 is 4.", "label": 0}, AUTO, ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "text with a label of true or false", {"text": "2 + 2 is 4.", "label": False}, AUTO, ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "Guanaco: text with ### Human and ### Assistant", {"text": "### Human: 2 + 2?### Assistant: 4"}, AUTO, ("«### Human: 2 + 2?### Assistant: 4<|im_end|>»",)),
        (group, "text with meta (the Pile, RedPajama)", {"text": "2 + 2 is 4.", "meta": {"url": "x"}}, AUTO, ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "content", {"content": "2 + 2 is 4."}, "format: {text: {field: content}}", ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "Text in capitals", {"Text": "2 + 2 is 4."}, "format: {text: {field: Text}}", ("«2 + 2 is 4.<|im_end|>»",)),
        (group, "Axolotl: segments", {"segments": [{"label": True, "text": "<s>Hi"}, {"label": False, "text": " there "}, {"label": True, "text": "end"}]}, AUTO, ("«<s>Hi» there «end»",)),
        (group, "input_ids alone", {"input_ids": [50, 51]}, AUTO, ("50 «51»",)),
        (group, "input_ids with labels", {"input_ids": [50, 51, 52], "labels": [-100, -100, 52]}, AUTO, ("50 51 «52»",)),
        (group, "input_ids with completion_mask", {"input_ids": [50, 51, 52], "completion_mask": [0, 0, 1]}, AUTO, ("50 51 «52»",)),
        (group, "input_ids with assistant_masks", {"input_ids": [50, 51, 52], "assistant_masks": [0, 1, 0]}, AUTO, ("50 «51» 52",)),
        (group, "input_ids with loss_mask (verl, Megatron)", {"input_ids": [50, 51, 52], "loss_mask": [0, 0, 1]}, AUTO, ("50 51 «52»",)),
        (group, "input_ids with assistant_mask", {"input_ids": [50, 51, 52], "assistant_mask": [0, 1, 0]}, AUTO, ("50 «51» 52",)),
        (group, "padded on the right", {"input_ids": [50, 51, 0, 0], "attention_mask": [1, 1, 0, 0]}, AUTO, ("50 «51»",)),
        (group, "padded on the left", {"input_ids": [0, 50, 51], "attention_mask": [0, 1, 1], "labels": [0, 50, 51]}, AUTO, ("50 «51»",)),
        (group, "packed, with seq_lengths", {"input_ids": [50, 51, 52, 53], "seq_lengths": [2, 2]}, AUTO, ("50 «51»", "52 «53»")),
        (group, "packed, with position_ids", {"input_ids": [50, 51, 52, 53], "position_ids": [0, 1, 0, 1]}, AUTO, ("50 «51»", "52 «53»")),
        (group, "packed, with numbers of documents as attention_mask", {"input_ids": [50, 51, 52, 53, 0], "attention_mask": [1, 1, 2, 2, 0]}, AUTO, ("50 «51»", "52 «53»")),
        (group, "attention_mask with a hole", {"input_ids": [50, 51, 52], "attention_mask": [1, 0, 1]}, "between tokens that are read", ()),
        (group, "negative ids", {"input_ids": [-1, 2]}, "token ids begin at 0", ()),
    ]  # fmt: skip
    group = "Preferences, marks and scores"
    chosen, rejected = [U, A], [U, {**A, "content": "5"}]
    found += [
        (group, "DPO: prompt, chosen, rejected as texts", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, PREFERENCE, ONE),
        (group, "DPO with whole conversations (UltraFeedback binarized)", {"prompt": "2 + 2?", "chosen": chosen, "rejected": rejected}, PREFERENCE, ONE),
        (group, "DPO with conversations alone", {"chosen": chosen, "rejected": rejected}, PREFERENCE, ONE),
        (group, "DPO with a prompt of messages (TRL)", {"prompt": [U], "chosen": [A], "rejected": [A]}, PREFERENCE, ONE),
        (group, "DPO in ShareGPT's shape (LLaMA-Factory)", {"conversations": [H], "chosen": G, "rejected": G}, PREFERENCE, ONE),
        (group, "DPO beside messages", {"messages": [U], "chosen": "4", "rejected": "5"}, PREFERENCE, ONE),
        (group, "Orca DPO: system, question, chosen, rejected", {"system": "Be brief.", "question": "2 + 2?", "chosen": "4", "rejected": "5"}, PREFERENCE, SYS),
        (group, "DPO in Alpaca's shape (LLaMA-Factory)", {"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"}, PREFERENCE, ONE),
        (group, "HH-RLHF: transcripts", {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"}, PREFERENCE, ONE),
        (group, "arena: two conversations and the winner", {"model_a": "x", "model_b": "y", "winner": "model_b", "conversation_a": rejected, "conversation_b": chosen}, PREFERENCE, ONE),
        (group, "two answers without a winner (PKU-SafeRLHF)", {"prompt": "2 + 2?", "response_0": "4", "response_1": "5", "better_response_id": 0}, "these are preference data", ()),
        (group, "KTO: a bad answer as texts", {"prompt": "2 + 2?", "completion": "5", "label": False}, "is marked as a bad one", ()),
        (group, "KTO: a bad answer as messages", {"messages": rejected, "label": False}, "rows: {where: {label: true}}", ()),
        (group, "KTO: a good answer", {"messages": chosen, "label": True}, AUTO, ONE),
        (group, "KTO as LLaMA-Factory has it", {"conversations": [H, G], "kto_tag": False}, "rows: {where: {kto_tag: true}}", ()),
        (group, "HelpSteer: answers with scores", {"prompt": "2 + 2?", "response": "4", "helpfulness": 4, "correctness": 4}, alpaca("prompt", "response"), ONE),
    ]  # fmt: skip
    group = "Images, videos and sounds"
    found += [
        (group, "videos that are empty", {"messages": [U, A], "videos": []}, AUTO, ONE),
        (group, "videos (LLaMA-Factory)", {"messages": [U, A], "videos": ["a.mp4"]}, "reads no video", ()),
        (group, "audios (LLaMA-Factory)", {"conversations": [H, G], "audios": ["a.wav"]}, "reads no audio", ()),
        (group, "audio beside text", {"text": "x", "audio": {"array": [0.0], "sampling_rate": 1}}, "reads no audio", ()),
        (group, "an image_url in a message, for a text model", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}]}, A]}, "image", ()),
        (group, "instruction and output with an image", {"instruction": "2 + 2?", "output": "4", "image": "a.png"}, "no installed format recognises", ()),
    ]  # fmt: skip
    return found


SHAPES = tuple(Shape(*one) for one in _shapes())
