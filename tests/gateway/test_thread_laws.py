"""However alike conversations are, no two of them become one session."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.scripted import DONE, answer_of

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.gateway.identity import identify
from mars.gateway.recall import Recall
from mars.gateway.stay import Call, Stay
from mars.gateway.thread import AnswerReader


class Talks:
    """Conversations that all go through one recall."""

    def __init__(self) -> None:
        self.recall = Recall(infers=True)
        self.requests: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """By session: conversation, and turn within it."""
        self._arrived = 0

    def ask(self, talk: int, turn: int, messages: list[dict[str, str]]) -> AnswerReader:
        found = identify([], msgspec.json.encode({"messages": messages}), self.recall)
        self._arrived += 1
        session_id = found.session_id or SessionId(f"new{self._arrived}")
        self.requests[session_id].append((talk, turn))
        assert found.asked is not None
        stay = Stay.of(ev.SessionArrived(at_s=0.0, session_id=session_id), None, 0.0)
        call = Call(CallId("c"), stay, found.final, None, queued_s=0.0)
        return AnswerReader(found.asked, self.recall, call)


def talk_of(talks: Talks, talk: int, prompt: str, steps: list[tuple[str, str]]) -> "list[Any]":
    """The conversation as two actions a turn, so that others come between question and answer."""
    messages = [{"role": "user", "content": prompt}]
    readers: list[AnswerReader] = []

    def ask(turn: int) -> None:
        readers.append(talks.ask(talk, turn, messages))

    def answer(said: str, more: str) -> None:
        readers[-1].read(answer_of(said), last=True)
        messages.extend([{"role": "assistant", "content": said}, {"role": "user", "content": more}])

    actions: list[Any] = []
    for turn, (said, more) in enumerate(steps):
        actions += [lambda turn=turn: ask(turn), lambda said=said, more=more: answer(said, more)]
    return actions


few = st.sampled_from(["a", "b"])


@given(
    st.lists(st.tuples(few, st.lists(st.tuples(few, few), min_size=1, max_size=4)), max_size=5),
    st.randoms(use_true_random=False),
)
def test_no_two_conversations_are_mixed(
    talks: list[tuple[str, list[tuple[str, str]]]], order: Any
) -> None:
    """However alike they are, and however their requests interleave.

    A session is one conversation; where two were the same so far, word for word, it may be either:
    nobody can tell, and their KV is the same. But never more than one at a time.
    """
    all_of_them = Talks()
    left = [talk_of(all_of_them, it, *talk) for it, talk in enumerate(talks)]
    while any(left):
        order.choice([it for it in left if it]).pop(0)()
    for requests in all_of_them.requests.values():
        for (talk, turn), (next_talk, next_turn) in pairwise(requests):
            assert next_turn == turn + 1, "one request after the other"
            (prompt, steps), (next_prompt, next_steps) = talks[talk], talks[next_talk]
            assert (next_prompt, next_steps[:turn]) == (prompt, steps[:turn])
            assert next_steps[turn][0] == steps[turn][0], "it repeats the answer"
    if len({(prompt, tuple(steps[:1])) for prompt, steps in talks}) == len(talks):
        assert len(all_of_them.requests) == len(talks), "each is one session"


def test_a_long_answer_is_not_kept() -> None:
    talks = Talks()
    reader = talks.ask(0, 0, [{"role": "user", "content": "a"}])
    for _ in range(30):
        reader.read(b"x" * 50_000, last=False)
    assert reader._speech is None
    reader.read(DONE, last=True)
    assert talks.recall._by_answer == {}
