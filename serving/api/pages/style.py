"""How the documentation page looks, in light and in dark. Data only."""

CSS = """
:root { --ink: #1c2128; --soft: #57606a; --paper: #ffffff; --panel: #f5f7f9; --line: #d8dee4; --accent: #0b62c4;
  --get: #1a7f4b; --post: #8a4b0f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #10151c; --panel: #18202a;
  --line: #2d3743; --accent: #6cb0ff; --get: #56c98a; --post: #e5a45c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .35rem 0; } a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.soft { color: var(--soft); }
nav { columns: 2; margin: 1rem 0 0; padding: 1rem; background: var(--panel); border-radius: .6rem; }
nav a { display: block; padding: .1rem 0; } @media (max-width: 40rem) { nav { columns: 1; } }
details { border: 1px solid var(--line); border-radius: .6rem; margin: .6rem 0; }
details[open] { padding-bottom: .75rem; } details > :not(summary) { margin-left: 1rem; margin-right: 1rem; }
summary { cursor: pointer; padding: .7rem 1rem; } summary:hover { background: var(--panel); }
details details { margin: .6rem 1rem; } :target { outline: 2px solid var(--accent); }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 3.2rem; font-weight: 700; } .get { color: var(--get); }
.post { color: var(--post); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
""".strip()
