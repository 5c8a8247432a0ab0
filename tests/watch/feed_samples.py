"""Answers of the feeds, written by hand in their real formats (not recorded: no text is theirs).

The shapes are those of GitHub's `releases.atom` (id, updated, link, title, content as escaped
HTML, author, media:thumbnail) and of PyPI's `/pypi/NAME/json` (info, releases with their files).
"""

from __future__ import annotations

import json
from html import escape

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:media="http://search.yahoo.com/mrss/" xml:lang="en-US">
  <id>tag:github.com,2008:https://github.com/{repository}/releases</id>
  <link type="text/html" rel="alternate" href="https://github.com/{repository}/releases"/>
  <link type="application/atom+xml" rel="self" href="https://github.com/{repository}/releases.atom"/>
  <title>Release notes from {repository}</title>
  <updated>2026-11-27T10:20:30Z</updated>
"""  # noqa: E501
ENTRY = """  <entry>
    <id>tag:github.com,2008:Repository/612354784/{tag}</id>
    <updated>{updated}T09:08:07Z</updated>
    <link rel="alternate" type="text/html" href="https://github.com/{repository}/releases/tag/{tag}"/>
    <title>{tag}</title>
    <content type="html">{content}</content>
    <author><name>somebody</name></author>
    <media:thumbnail height="30" width="30" url="https://avatars.example/u/1?s=60&amp;v=4"/>
  </entry>
"""

NOTES = """<h2>Highlights</h2>
<ul>
<li>KV cache: <code>nvfp4</code> now runs on SM120 (#47684, <a href="https://x">docs</a>). It is
fast.</li>
<li>Rename <code>--kv-cache-dtype-skip-layers</code> values (<a
href="https://github.com/o/engine/pull/59001">#59001</a>)</li>
<li>Hadamard transform fused into the attention kernel</li>
<li>Better logging of HTTP requests</li>
</ul>
<h3>Models</h3>
<p>Gemma 4 QAT checkpoints load. The sliding window layers share the cache.</p>
<p>Rotary embedding clean-up; typed configuration of the scheduler</p>
"""


def atom(repository: str, *entries: tuple[str, str, str]) -> bytes:
    """A release feed; entries are tag, day and HTML."""
    text = "".join(
        ENTRY.format(repository=repository, tag=tag, updated=day, content=escape(html))
        for tag, day, html in entries
    )
    return (HEAD.format(repository=repository) + text + "</feed>\n").encode()


def index(package: str, *versions: str, yanked: tuple[str, ...] = ()) -> bytes:
    """A package index's answer; files are uploaded on one day each, from 2026-01-01 on."""
    releases = {
        version: [
            {
                "filename": f"{package}-{version}-py3-none-any.whl",
                "packagetype": "bdist_wheel",
                "upload_time": f"2026-01-{n:02}T10:13:42",
                "upload_time_iso_8601": f"2026-01-{n:02}T10:13:42.000000Z",
                "yanked": version in yanked,
                "yanked_reason": None,
            }
        ]
        for n, version in enumerate(versions, 1)
    }
    info = {"name": package, "version": versions[-1] if versions else "0", "yanked": False}
    found = {"info": info, "releases": releases, "urls": [], "last_serial": 1}
    return json.dumps(found).encode()
