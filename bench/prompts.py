"""Questions of four kinds, six each, to measure guesses with."""

from penstock import LLM

PROMPTS: dict[str, tuple[str, ...]] = {
    "chat": (
        "My landlord wants to raise the rent by fifteen percent. What should I check before I answer?",
        "What's a good way to start running after ten years of sitting at a desk?",
        "Explain what a mortgage is as if I were twelve.",
        "I have eggs, rice, a leek and some cheese. What can I cook tonight?",
        "Give me five tips for a job interview at a small company.",
        "Why do cats purr, and is it always a good sign?",
    ),
    "code": (
        "Write a Python function that merges two sorted lists without using sort.",
        "Write a SQL query that finds the three customers with the largest total of orders in 2023.",
        "Implement a stack in C with push, pop, peek, and show how to use it.",
        "Write a bash script that renames all .jpeg files of a directory to .jpg.",
        "Write a JavaScript function that debounces another function, with an example.",
        "Here is a function:\n\ndef mean(xs):\n    return sum(xs) / len(xs)\n\nMake it work for empty lists; add tests",
    ),
    "prose": (
        "Write the first paragraphs of a story about a lighthouse keeper who finds a letter.",
        "Describe an autumn market in a small town.",
        "Write a letter to a friend about a long train journey through the mountains.",
        "Tell the story of the tortoise and the hare from the hare's point of view.",
        "Write a short essay on why people keep diaries.",
        "Summarize in plain words how a steam engine turns heat into motion.",
    ),
    "another language": (
        "Schreibe einen kurzen Brief an die Nachbarn, dass am Samstag ein Fest stattfindet.",
        "Explique en français comment fonctionne une bicyclette.",
        "Escribe una receta sencilla de tortilla de patatas.",
        "Was ist der Unterschied zwischen Wetter und Klima?",
        "Quelles sont les saisons de l'année, et que fait-on dans chacune d'elles ?",
        "用中文介绍一下长城的历史。",
    ),
}


def prompt_of(llm: LLM, question: str) -> list[int]:
    """A question as the model's chat template has it, if there is one."""
    return llm.chat_prompt([{"role": "user", "content": question}]) if llm.has_chat_template else llm.encode(question)
