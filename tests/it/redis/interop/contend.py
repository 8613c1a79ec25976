"""Threads that take a redis-py lock and count up under it: read, then write. Begins when told to on standard input."""

import sys
import threading

import redis
from redis.lock import Lock

port, name, counter, log, threads, rounds = sys.argv[1:]
failed = []


def count_up():
    try:
        client = redis.Redis(port=int(port), protocol=2)
        lock = Lock(client, name, timeout=60, sleep=0.01)
        for _ in range(int(rounds)):
            with lock:
                value = int(client.get(counter))
                client.set(counter, value + 1)
                client.rpush(log, "redis-py")
    except BaseException as error:
        failed.append(error)
        raise


print("ready", flush=True)
sys.stdin.readline()
running = [threading.Thread(target=count_up, daemon=True) for _ in range(int(threads))]
for thread in running:
    thread.start()
for thread in running:
    thread.join()
print(f"failed: {failed!r}" if failed else "done", flush=True)
