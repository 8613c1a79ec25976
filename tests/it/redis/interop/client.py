"""One redis-py lock, told what to do on standard input, one line at a time. Ends with its input."""

import sys

import redis
from redis.lock import Lock

client = redis.Redis(port=int(sys.argv[1]), protocol=2)
lock = None
print("ready", flush=True)
for line in sys.stdin:
    command, *words = line.split()
    if command == "lock":  # name, time to live in seconds or 0 for none
        lock = Lock(client, words[0], timeout=float(words[1]) or None, sleep=0.01)
        answer = "ok"
    else:
        try:
            answer = {
                "try": lambda: lock.acquire(blocking=False),
                "acquire": lock.acquire,
                "owned": lock.owned,
                "extend": lambda: lock.extend(60),
                "release": lock.release,
            }[command]()
        except redis.exceptions.LockError as error:
            answer = type(error).__name__
    print(answer, flush=True)
