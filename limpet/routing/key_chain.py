"""The key chain: what `--by` means.

Owns the text of a chain and the order in which its elements are asked; routing/elements.py owns what each of them
finds. Refuses to know what becomes of a key: routing/router.py hashes it. The router asks the chain for connections,
`limpet where` for keys as text. Pure; runs user code only if it was given *load*.

1. Nothing that a client sends makes `find` raise, and no exception of a user's function leaves it.
2. `KeyChain.parse(chain.spec)` is the same chain.
3. A comma ends an element. Only regular expressions may hold commas: one ends where a known element begins behind
   a comma, so in `path:^/(a{1,3}),ip` it is the second.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request
from limpet.routing.affinity_cookie import Jar
from limpet.routing.elements import (
    AFFINITY,
    Affinity,
    Bearer,
    Cookie,
    Element,
    Forwarded,
    Function,
    Header,
    Ip,
    Key,
    OnError,
    Path,
    Query,
    Sni,
    UserFunction,
)
from limpet.routing.forwarded import Trust

__all__ = ["Key", "KeyChain", "Trust"]

Load = Callable[[str], UserFunction]

_ALLOWED: Final = (
    "`ip`, `ip/24`, `ip/24/64`, `forwarded`, `header:NAME`, `cookie:NAME`, `query:NAME`, `path:REGEX`, "
    "`bearer`, `affinity`, `sni` and `python:MODULE:FUNCTION` are allowed"
)
_HINT: Final = "`--by cookie:sid,ip` takes the cookie `sid`, and the address of clients without one"
_COMMA: Final = re.compile(",")
_COMMA_BEHIND_REGEX: Final = re.compile(
    r",(?=\s*(?:(?:ip|forwarded|affinity|bearer|sni)\s*(?:[/,]|\Z)|(?:header|cookie|query|path|python):))"
)
_KINDS: Final[Mapping[str, Callable[[str], Element]]] = {
    "header": Header,
    "cookie": Cookie,
    "query": Query,
    "path": Path,
}
_ADDRESS: Final = re.compile(r"(ip|forwarded)(?:/([0-9]{1,3}))?(?:/([0-9]{1,3}))?")
_FUNCTION: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_LABEL: Final = re.compile(
    r"((?:ip|forwarded)(?:/[0-9]+)*|affinity|bearer|sni|(?:header|cookie|query|path|python):[^=]*)=.*", re.DOTALL
)


class KeyChain:
    """Elements in the order in which they are asked for a client's key."""

    __slots__ = ("_elements", "find", "needs_head", "spec", "value")

    find: Callable[[Peer, Request | None], Key | None]
    """Return the key of the first element that has one for this client; None when none has."""
    value: Callable[[Request], bytes | None] | None
    """Return the value of the key, in a chain of one element that needs nothing but its request; None for others."""

    def __init__(self, elements: Sequence[Element]) -> None:
        if not elements:
            raise SettingsError(f"the key chain is empty: {_ALLOWED}", hint=_HINT)
        self._elements = tuple(elements)
        self.find = self._find if len(elements) > 1 else elements[0].find  # no loop for one: it runs for each request
        self.value = elements[0].value if len(elements) == 1 else None
        self.needs_head = any(element.needs_head for element in elements)
        self.spec = ",".join(element.spec for element in elements)
        if [element.spec for element in elements] != list(_parts(self.spec)):
            raise SettingsError(
                f"`{self.spec}` would be read as another chain: a regular expression must not hold a comma before "
                "what looks like an element, nor blanks at its ends",
                hint="`[,]` is a comma and `[ ]` a blank",
            )

    def at(self, bind: int) -> KeyChain:
        """Return the chain of the bind number *bind*."""
        return self

    @property
    def elements(self) -> tuple[Element, ...]:
        """Return the elements, in the order in which they are asked."""
        return self._elements

    def bits_of(self, found: Collection[str]) -> int:
        """Return a number with a bit for each element, set for those *found*."""
        return sum(1 << number for number, element in enumerate(self._elements[:64]) if element.spec in found)

    def elements_of(self, bits: int) -> list[str]:
        """Return the elements whose bits are set."""
        return [element.spec for number, element in enumerate(self._elements[:64]) if bits >> number & 1]

    @property
    def prefixes(self) -> tuple[int, int] | None:
        """Return the prefix lengths, IPv4's and IPv6's, of a chain that is `ip` alone; None for any other."""
        only = self._elements[0]
        return only.prefixes if len(self._elements) == 1 and type(only) is Ip else None

    @classmethod
    def parse(
        cls,
        text: str,
        trust: Trust,
        load: Load | None = None,
        on_error: OnError | None = None,
        jar: Jar | None = None,
    ) -> KeyChain:
        """Return the chain written as *text*.

        *load* imports the function named `module:function`; without it functions stay unresolved, so that who
        only has to read a chain runs no user code. *on_error* hears of each function that raised or answered
        what is no key; *jar* opens limpet's own cookies. Raises SettingsError, and whatever *load* raises.
        """
        return cls([_element(part, trust, load, on_error, jar) for part in _parts(text)])

    @property
    def has_affinity(self) -> bool:
        """Return whether limpet's own cookie is among the elements."""
        return any(isinstance(element, Affinity) for element in self._elements)

    @property
    def needs_server_name(self) -> bool:
        """Return whether it is looked for in the TLS handshake, too."""
        return any(isinstance(element, Sni) for element in self._elements)

    @property
    def asks_functions(self) -> bool:
        """Return whether a user's function is among the elements: it may answer otherwise when it is asked again."""
        return any(isinstance(element, Function) for element in self._elements)

    def before_affinity(self, peer: Peer, request: Request) -> bool:
        """Return whether an element before `affinity` has a key of this client, so that it needs no cookie."""
        earlier = itertools.takewhile(lambda element: not isinstance(element, Affinity), self._elements)
        return any(element.find(peer, request) is not None for element in earlier)

    def _find(self, peer: Peer, request: Request | None) -> Key | None:
        for element in self._elements:
            key = element.find(peer, request)
            if key is not None:
                return key
        return None

    def from_text(self, text: str) -> Key:
        """Return the key that `[ELEMENT=]KEY` means; without ELEMENT the first of the chain. Raises SettingsError.

        A KEY is what a client sends, in UTF-8; of a query or path, what it sends once decoded.
        """
        for element in self._elements:
            key = element.labelled(text)
            if key is not None:
                return element.read(key)
        first = self._elements[0]
        if label := _LABEL.fullmatch(text):
            raise SettingsError(
                f"`{label[1]}` is not in the key chain `{self.spec}`",
                hint=f"`limpet where '{first.spec}=KEY'` asks for a key of its first element",
            )
        return first.read(text)


class Chains(KeyChain):
    """The chains of binds that have chains of their own; the elements of all of them can be asked for."""

    __slots__ = ("_chains",)

    def __init__(self, chains: Sequence[KeyChain]) -> None:
        elements = {element.spec: element for chain in chains for element in chain._elements}
        self._elements = tuple(elements.values())
        self._chains = tuple(chains)
        self.find = self._find_at
        self.value = None
        self.needs_head = any(chain.needs_head for chain in chains)
        self.spec = " | ".join(chain.spec for chain in chains)

    def at(self, bind: int) -> KeyChain:
        return self._chains[bind]

    @property
    def prefixes(self) -> tuple[int, int] | None:
        each = {chain.prefixes for chain in self._chains}
        return each.pop() if len(each) == 1 else None

    def before_affinity(self, peer: Peer, request: Request) -> bool:
        return self._chains[peer.bind].before_affinity(peer, request)

    def _find_at(self, peer: Peer, request: Request | None) -> Key | None:
        return self._chains[peer.bind].find(peer, request)


def _parts(text: str) -> Iterator[str]:
    """Yield the text of each element of a chain."""
    rest = [text]
    while rest:
        text = rest[0].strip()
        part, *rest = (_COMMA_BEHIND_REGEX if text.startswith("path:") else _COMMA).split(text, maxsplit=1)
        yield part.strip()


def _element(text: str, trust: Trust, load: Load | None, on_error: OnError | None, jar: Jar | None = None) -> Element:
    if match := _ADDRESS.fullmatch(text):
        v4, v6 = int(match[2] or 32), int(match[3] or 64)
        return Ip(v4, v6) if match[1] == "ip" else Forwarded(v4, v6, trust=trust)
    if text == Sni.spec:
        return Sni()
    if text == Bearer.spec:
        return Bearer()
    if text == AFFINITY:
        return Affinity(jar)
    kind, colon, rest = text.partition(":")
    if colon and kind in _KINDS:
        return _KINDS[kind](rest)
    if kind == "python" and _FUNCTION.fullmatch(rest):
        return Function(rest, load(rest) if load else None, on_error)
    raise SettingsError(f"`{text}` is not an element of a key chain: {_ALLOWED}", hint=_HINT)
