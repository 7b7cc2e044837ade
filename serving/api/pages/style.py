"""How the documentation page looks, in light and in dark. Data only."""

CSS = """
:root { --ink: #1c2128; --soft: #57606a; --paper: #ffffff; --panel: #f4f6f8; --line: #d8dee4; --accent: #0b62c4;
  --get: #1a7f4b; --post: #8a4b0f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6ed; --soft: #9aa5b1; --paper: #10151c; --panel: #19212b;
  --line: #2d3743; --accent: #6cb0ff; --get: #56c98a; --post: #e5a45c; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 58rem; padding: 2rem 1.5rem 6rem; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; }
h4 { font-size: .95rem; margin: 1.25rem 0 .35rem; }
p { margin: .35rem 0; } a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.soft { color: var(--soft); font-weight: 400; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
h3 code { font-size: 1em; }
.method { display: inline-block; width: 2.9rem; font-size: .8rem; font-weight: 700; }
.get { color: var(--get); } .post { color: var(--post); }
nav { padding: 1.5rem 1.5rem 1rem; background: var(--panel); font-size: .9rem; }
nav p { margin: .9rem 0 .15rem; font-weight: 600; } nav p:first-child { margin-top: 0; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li a { display: flex; align-items: baseline; padding: .2rem 0; color: inherit; }
section { padding: 1.25rem 0; border-top: 1px solid var(--line); } h2 + section { border-top: 0; padding-top: 0; }
section:target h3 { text-decoration: underline .15em var(--accent); text-underline-offset: .35em; }
pre { margin: .75rem 0; padding: .8rem 1rem; background: var(--panel); border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
details { margin-top: .9rem; } summary { cursor: pointer; color: var(--soft); font-size: .95rem; }
summary:hover { color: var(--ink); }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .92rem; table-layout: fixed; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { width: 28%; } th:nth-child(2) { width: 24%; }
.limits { color: var(--soft); white-space: nowrap; } td b { color: var(--soft); font-size: .8em; font-weight: 400; }
details th:first-child { width: 4.5rem; } details th:nth-child(2) { width: 45%; }
@media (min-width: 62rem) {
  body { display: grid; grid-template-columns: 17.5rem minmax(0, 1fr); }
  nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; }
  main { padding: 2rem 2.5rem 6rem; }
}
@media (max-width: 40rem) {
  table, tbody, tr, td { display: block; width: auto; } th { display: none; }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line); } td { border: 0; padding: 0; }
  td:nth-child(2) { color: var(--soft); }
}
@media print { nav { display: none; } body { display: block; } }
""".strip()
