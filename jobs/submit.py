#!/usr/bin/env python
"""Run a job on a Ray cluster as if it ran here: its log on stderr, its JSON on stdout, its exit code, Ctrl-C stops it.

  python jobs/submit.py jobs/score.py --model /shared/bundle --input 's3://bucket/*.jsonl.gz' --output s3://bucket/scored
  python jobs/submit.py --address http://head:8265 --profile gpu-cluster jobs/train_bert.py --output /shared/bert | jq
  python jobs/submit.py --no-wait --submission-id tonight jobs/prepare.py --input /shared/a.csv --output /shared/a
  python jobs/submit.py --env HF_HOME=/shared/hub jobs/train_bert.py --data /shared/imdb --output /shared/bert

Flags before the job's file are for the submission, those behind it are the job's own. The code of this checkout, its
ray_config.yaml and the SENTIMENT_… variables that are set here (but for SENTIMENT_API_KEYS) go along. Data doesn't:
give paths that all nodes see, or URIs. A cluster that asks for a token gets that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH
or ~/.ray/auth_token. More in docs/cluster.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.submission import dashboard_address, plan
from sentiment.errors import ConfigError, SentimentError


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, follow, report; returns the job's exit code, 2 if it could not be submitted."""
    try:
        given = _parser().parse_args(argv)
        address = dashboard_address(given.address)
        submission = plan(given.job, given.flags, given.profile, given.env, given.submission_id)
        from jobs.job_follower import submit

        return submit(submission, address, wait=not given.no_wait)
    except SentimentError as error:
        print(f"submit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("submit: interrupted before the job was submitted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jobs/submit.py",
        usage="%(prog)s [--address URL] [--profile NAME] [--env NAME=VALUE] [--submission-id ID] [--no-wait] JOB …",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address", metavar="URL", help="dashboard (also RAY_API_SERVER_ADDRESS, RAY_ADDRESS; http://127.0.0.1:8265)"
    )
    parser.add_argument("--profile", metavar="NAME", help="profile of ray_config.yaml that the job takes")
    parser.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="variable for the job; may be given again"
    )
    parser.add_argument("--submission-id", metavar="ID", help="name of the run on the cluster; made up if not given")
    parser.add_argument("--no-wait", action="store_true", help="submit, print the id as JSON and leave")
    parser.add_argument("job", metavar="JOB", help="file of the job, such as jobs/score.py")
    parser.add_argument(
        "flags", metavar="…", nargs=argparse.REMAINDER, help="the job's own flags, as without a cluster"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
