"""The console: the page for people at `/`, and what it asks for.

| module | is for |
|---|---|
| `page` | the page and its files, each with a digest as its ETag and a strict content security policy |
| `live` | the live view: figures of each batch and of the queue, several times a second, to few viewers |
| `live_stream` | the live view over HTTP, as server-sent events |
| `uploads`, `file_reader` | reads an uploaded file in a process of its own |
| `routes` | the paths |
| `static/` | the page: HTML, a style sheet, and a JavaScript module for each subject |
"""
