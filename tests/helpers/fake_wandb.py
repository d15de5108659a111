"""As much of the W&B service as its client needs to log a run, look runs up, change them and save a report.

It stores what the real client sends: history lines at their offsets in the file stream, so that a line sent
twice, or left out, is seen. It knows no permissions, limits, filters or files' contents, renders nothing, and
answers every query with all fields of the object it is about.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"
KEY = "k" * 40
CREATED = "2024-01-01T00:00:00"
PROJECT = {"createdAt": CREATED, "isBenchmark": False, "user": None}


@dataclass
class OnlineRun:
    """A run as the service has it."""

    name: str
    project: str
    config: dict[str, Any] = field(default_factory=dict)
    """by key, without the client's own `_wandb`"""
    lines: dict[int, str] = field(default_factory=dict)
    """of the history, by offset"""
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    title: str | None = None
    raw_config: str = "{}"

    @property
    def id(self) -> str:
        return f"storage-{self.project}-{self.name}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, in order, without the client's own keys."""
        assert sorted(self.lines) == list(range(len(self.lines)))
        rows = [json.loads(self.lines[offset]) for offset in sorted(self.lines)]
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]

    @property
    def results(self) -> dict[str, Any]:
        """The summary, without the client's own keys."""
        return {key: value for key, value in self.summary.items() if not key.startswith("_")}

    def node(self) -> dict[str, Any]:
        """All fields that a query may ask for."""
        project = {"id": f"id-{self.project}", "name": self.project, "entity": {"id": "E", "name": ENTITY}}
        own = json.loads(self.raw_config).get("_wandb", {}).get("value", {})
        tail = [self.lines[offset] for offset in sorted(self.lines)[-1:]]
        return {
            "id": self.id,
            "projectId": "1",
            "name": self.name,
            "displayName": self.title,
            "description": None,
            "notes": None,
            "sweepName": None,
            "commit": None,
            "readOnly": False,
            "createdAt": CREATED,
            "heartbeatAt": CREATED,
            "user": {"name": ENTITY, "username": ENTITY},
            "project": project,
            "state": self.state,
            "group": self.group,
            "jobType": self.job_type,
            "tags": self.tags,
            "config": self.raw_config,
            "wandbConfig": json.dumps({"t": own["t"]} if "t" in own else {}),  # without: never started
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.lines),
            "historyTail": json.dumps(tail),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "historyKeys": None,
        }


@dataclass
class Service:
    """What is online, and the changes that were asked for."""

    url: str = ""
    runs: dict[tuple[str, str], OnlineRun] = field(default_factory=dict)
    """by project and id"""
    projects: set[str] = field(default_factory=set)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    """names of those that were uploaded"""
    changes: list[str] = field(default_factory=list)
    """what was asked for that writes"""
    refused: set[str] = field(default_factory=set)
    """ends of paths that are answered with an error which the client does not try again"""

    def clear(self) -> None:
        """Forget everything."""
        for known in (self.runs, self.projects, self.reports, self.files, self.changes):
            known.clear()
        self.refused = set()

    def run(self, name: str, project: str = "daft") -> OnlineRun:
        """The run of that id."""
        return self.runs[project, name]

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a response."""
        if "upsertBucket(" in query:
            inserted, run = self._upsert(given)
            return {"upsertBucket": {"bucket": run.node(), "inserted": inserted}}
        if "upsertView(" in query:
            return {"upsertView": {"view": self._view(given), "inserted": True}}
        if "upsertModel(" in query:
            self.projects.add(given["input"]["name"])
            project = self._project(given["input"]["name"])
            return {"result": {"project": project, "model": project, "inserted": True}}
        if "createRunFiles(" in query:
            self.files |= set(given["files"])
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if "viewer {" in query:
            account = {"id": "U", "entity": ENTITY, "username": ENTITY, "flags": "{}"}
            return {"viewer": account | {"teams": {"edges": []}}}
        if "serverInfo {" in query:
            return {"serverInfo": {"features": []}}
        if "query RunResumeStatus" in query:
            run = self.runs.get((given["project"], given["name"]))
            return {"model": self._project(given["project"]) | {"bucket": run and run.node()}}
        if "query Runs(" in query:
            runs = [run for (project, _), run in self.runs.items() if project == given["project"]]
            page = _page([run.node() for run in runs], given["cursor"], given["perPage"])
            known = given["project"] in self.projects
            return {"project": self._project(given["project"]) | {"runs": page} if known else None}
        if "query ProjectViews(" in query:
            views = {"allViews": _page(list(self.reports.values()), None, 50)}
            known = given["project"] in self.projects
            return {"project": self._project(given["project"]) | views if known else None}
        if "query GetProjects(" in query:
            return {"models": _page([self._project(name) for name in sorted(self.projects)], None, 50)}
        raise NotImplementedError(query)

    def stream(self, project: str, name: str, sent: dict[str, Any]) -> None:
        """A request of the file stream: lines of the history, the summary, the end."""
        self.changes.append(f"stream {name}")
        run = self.runs[project, name]
        for file, chunk in sent.get("files", {}).items():
            if file == "wandb-history.jsonl":
                run.lines |= enumerate(chunk["content"], chunk["offset"])
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            run.state = "failed" if sent["exitcode"] else "finished"

    def _project(self, name: str) -> dict[str, Any]:
        own = {"id": f"id-{name}", "internalId": "1", "name": name, "entityName": ENTITY}
        count = sum(project == name for project, _ in self.runs)
        entity = {"id": "E", "name": ENTITY}
        return own | {"entity": entity, "runCount": count, "readOnly": False} | PROJECT

    def _upsert(self, given: dict[str, Any]) -> tuple[bool, OnlineRun]:
        """Change a run that is named by its storage id, or by project and id; a null changes nothing."""
        known = {run.id: run for run in self.runs.values()}
        inserted = False
        if given.get("id"):
            run = known[given["id"]]
        else:
            key = given["project"], given["name"]
            inserted = key not in self.runs
            self.projects.add(key[0])
            run = self.runs.setdefault(key, OnlineRun(name=key[1], project=key[0]))
            run.state = "running"
        self.changes.append(f"upsert {run.name}")
        if (config := given.get("config")) is not None:
            run.raw_config = config
            entries = json.loads(config).items()
            run.config = {key: entry["value"] for key, entry in entries if key != "_wandb"}
        if (summary := given.get("summaryMetrics")) is not None:
            run.summary = json.loads(summary)
        for attribute, name in (("group", "groupName"), ("job_type", "jobType"), ("tags", "tags")):
            if given.get(name) is not None:
                setattr(run, attribute, given[name])
        run.title = given.get("displayName") or given.get("display_name") or run.title
        return inserted, run

    def _view(self, given: dict[str, Any]) -> dict[str, Any]:
        self.changes.append("report")
        identity = given["id"] or f"view{len(self.reports)}"
        project = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
        times = {"createdAt": CREATED, "updatedAt": CREATED}
        self.reports[identity] = given | times | {"id": identity, "project": project}
        return self.reports[identity]


def _page(nodes: list[dict[str, Any]], cursor: str | None, size: int) -> dict[str, Any]:
    """A page of a connection; the cursor of a node is its place."""
    first = int(cursor) + 1 if cursor else 0
    shown = nodes[first : first + size]
    edges = [{"node": node, "cursor": str(i)} for i, node in enumerate(shown, first)]
    more = first + size < len(nodes)
    return {"edges": edges, "pageInfo": {"endCursor": str(first + len(shown) - 1), "hasNextPage": more}}


@contextmanager
def serving() -> Iterator[Service]:
    """The service at its `url`, on this machine."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that ends does not say goodbye
                super().handle()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status, response = 200, {}
            if self.path.endswith(tuple(service.refused)):
                status = 401
            elif self.path == "/graphql":
                asked = json.loads(body)
                try:
                    response = {"data": service.graphql(asked["query"], asked.get("variables") or {})}
                except NotImplementedError as error:
                    response = {"errors": [{"message": f"the fake does not know: {error}"}]}
            elif self.path.endswith("/file_stream"):
                _, _, _, project, name, _ = self.path.split("/")
                service.stream(project, name, json.loads(body))
            content = json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
