#!/usr/bin/env python3
"""Solves a challenge: reads it from standard input as the kernel gave it, and prints the body that registers an agent.

    curl … /v1/agents/verification-challenge | python3 examples/solve_challenge.py | curl … /v1/agents --data @-

A webhook_url may be given as the argument. Python 3.9 or later, nothing but its standard library.
"""

import base64
import codecs
import hashlib
import json
import sys

OPERATIONS = {
    "reverse": lambda text: text[::-1],
    "base64_encode": lambda text: base64.b64encode(text.encode()).decode(),
    "base64_decode": lambda text: base64.b64decode(text).decode(),
    "hex_encode": lambda text: text.encode().hex(),
    "sha256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "uppercase": str.upper,
    "lowercase": str.lower,
    "rot13": lambda text: codecs.encode(text, "rot13"),
}


def solve(challenge_data):
    """Applies the operations in turn to the seed."""
    text = challenge_data["seed"]
    for operation in challenge_data["operations"]:
        name, _, value = operation["op"].partition(":")
        if name == "prepend":
            text = value + text
        elif name == "append":
            text = text + value
        elif name in OPERATIONS:
            text = OPERATIONS[name](text)
        else:
            sys.exit(f"the challenge has an operation that this program does not know: {name}")
    return text


def main():
    challenge = json.load(sys.stdin)
    if "error" in challenge:
        sys.exit(f"that is no challenge: {json.dumps(challenge)}")
    proof = {"challenge_id": challenge["challenge_id"], "response": solve(challenge["challenge_data"])}
    body = {"verification_response": proof}
    if len(sys.argv) > 1:
        body["webhook_url"] = sys.argv[1]
    print(json.dumps(body))


if __name__ == "__main__":
    main()
