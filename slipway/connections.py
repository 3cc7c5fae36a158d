"""The connections to a Redis, and what its errors mean. Redis is imported by nobody who has no REDIS_URL."""

from __future__ import annotations

from typing import Any

PATIENCE = 2.0  # seconds in which a shared store must answer


def pool(redis_url: str, **more: Any) -> Any:
    """Return the connections to a Redis (a redis.asyncio.BlockingConnectionPool).

    Who finds all taken waits for one: so many callers at once say nothing of Redis.
    """
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as Broken

    # a connection that broke while nobody used it says nothing of Redis; one that is silent does
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), 3, supported_errors=(Broken,))
    bounds: dict[str, Any] = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "timeout": PATIENCE}
    return BlockingConnectionPool.from_url(redis_url, retry=retry, **bounds, **more)


def error() -> type[Exception]:
    """Return what all is that a Redis client raises."""
    from redis.exceptions import RedisError

    return RedisError


def is_an_answer(error: Exception) -> bool:
    """Tell whether Redis answered with an error: it is full or read-only, or the lock was another's."""
    from redis.exceptions import LockError, ResponseError

    return isinstance(error, ResponseError | LockError)
