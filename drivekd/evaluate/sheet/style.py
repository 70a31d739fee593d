"""How a score sheet looks: one style sheet for light, dark and paper. No font, picture or script from anywhere."""

CSS = """
:root{--paper:#fff;--ink:#1c1f23;--faint:#5d6570;--line:#d9dde3;--soft:#f4f6f8;--own:#0b6bcb;--majority:#c2570c;
--random:#868e99;
--good:#17783f;--bad:#b3261e;--warn:#8a5a00;--judge:#7a3fa0}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ee;--faint:#a0a8b4;--line:#343a43;--soft:#1d2127;
--own:#6cb4ff;
--majority:#ffa657;--random:#8b949e;--good:#5fd08a;--bad:#ff8a80;--warn:#f0c060;--judge:#cfa3ef}}
@media print{:root{--paper:#fff;--ink:#000;--faint:#444;--line:#bbb;--soft:#f4f4f4;--own:#0b6bcb;--majority:#c2570c;
--random:#777;
--good:#17783f;--bad:#b3261e;--warn:#7a5000;--judge:#6a3290}}
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);background:var(--paper);
max-width:66rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
p{margin:.4rem 0 .8rem;max-width:52rem}.lead{color:var(--faint);margin-bottom:1rem}
.warning{border-left:4px solid var(--warn);background:var(--soft);padding:.45rem .8rem}
.scroll{overflow-x:auto;margin:.1rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.22rem .75rem .22rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--faint);vertical-align:bottom}
th.word,td.word{text-align:left;white-space:normal;min-width:7rem;max-width:24rem;overflow-wrap:break-word}
td.part{padding-left:1rem;color:var(--faint)}
th.separate,td.separate{border-left:2px solid var(--judge);padding-left:.75rem}
th.separate,th.separate~th{color:var(--judge)}
.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:6rem}.facts td:first-child{color:var(--faint);
white-space:nowrap}
.heat td.cell{text-align:center;padding:.25rem .55rem;border:1px solid var(--paper);min-width:3.6rem}
.heat th{padding:.25rem .55rem;white-space:normal;max-width:8rem}
.heat th.word{padding-left:0;max-width:18rem}
svg.chart{width:100%;max-width:45rem;height:auto;display:block}svg.square{width:19rem;max-width:100%}
figure{margin:.3rem 0 1.2rem}.beside{display:inline-block;vertical-align:top;margin-right:2.2rem;max-width:100%}
.beside figcaption{max-width:20rem}figcaption{color:var(--faint);font-size:.92rem;margin-bottom:.3rem}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
svg .tick,svg .faint{fill:var(--faint);font-size:11px}svg .strong .name{font-weight:600}
svg .grid{stroke:var(--line)}svg .zero{stroke:var(--faint);stroke-dasharray:3 3}svg .frame{fill:none;stroke:var(--line)}
svg .whisker{stroke:var(--own);stroke-width:2.5}svg .dot{fill:var(--own)}svg .soft{fill-opacity:.65}
svg .part .whisker{stroke-width:1.5}
svg .majority{fill:none;stroke:var(--majority);stroke-width:2}svg .random{stroke:var(--random);stroke-width:2.5}
.legend{color:var(--faint);font-size:.86rem;display:flex;gap:1.2rem;flex-wrap:wrap;margin:.1rem 0 .3rem}
.legend svg{width:26px;height:14px;vertical-align:-2px;margin-right:.3rem}
article{border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:0 0 1rem;break-inside:avoid}
article h3{font-size:.95rem;margin:0 0 .4rem;overflow-wrap:anywhere}article h3 small{font-weight:400;color:var(--faint)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:.5rem;margin:.5rem 0}
.pictures figure{margin:0}.pictures figcaption{font-size:.78rem;margin:.1rem 0 0;overflow-wrap:anywhere}
.pictures svg{width:100%;height:auto;display:block;border-radius:4px;background:var(--soft)}
.absent{border:1px dashed var(--line);border-radius:4px;padding:.8rem;color:var(--faint);font-size:.82rem;
overflow-wrap:anywhere}
.pictures.single{max-width:420px;grid-template-columns:1fr}.pictures.around{grid-template-columns:repeat(3,1fr);max-width:50rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);border-radius:4px;padding:.4rem .6rem;
margin:.15rem 0 .5rem}
dl{margin:.3rem 0 0}dt{color:var(--faint);font-size:.84rem}dd{margin:0}
.good{color:var(--good)}.bad{color:var(--bad)}.verdict{font-size:.9rem;font-weight:600}
footer{color:var(--faint);font-size:.85rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:.8rem}
@media (max-width:40rem){body{padding:1rem .8rem 3rem;font-size:14px}th,td{padding-right:.55rem}
figure.wide{overflow-x:auto}figure.wide svg.chart{min-width:34rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}h2{break-after:avoid}.scroll{overflow:visible}
table{break-inside:auto}
tr{break-inside:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
