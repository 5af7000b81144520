"""How the page of restored photos looks, and what it does when somebody uses it."""

STYLE = """
:root { --paper: #fbfbfa; --ink: #1c1c1e; --soft: #5c5c62; --line: #d8d8d6; --card: #fff; --accent: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181a; --ink: #ececea; --soft: #a3a3a8; --line: #3a3b3f; --card: #202124; --accent: #8ab4f8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; }
.guess { margin: .3rem 0 0; color: var(--soft); }
article, section { margin-top: 1.5rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.view { --at: 50%; --zoom: 1; --left: 0%; --top: 0%; position: relative; margin: 0 auto; overflow: hidden;
  aspect-ratio: var(--width) / var(--height); background: var(--line);
  width: min(100%, max(20rem, 1px * var(--width)), 80vh * var(--width) / var(--height)); }
.view:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
.layer { position: absolute; inset: 0; }
.layer.before { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.layer.after { clip-path: inset(0 0 0 var(--at)); }
.stage { transform-origin: 0 0;
  transform: scale(var(--zoom)) translate(calc(0% - var(--left)), calc(0% - var(--top))); }
.view img { display: block; width: 100%; height: 100%; }
.areas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; transition: opacity .15s; }
.areas path { fill: none; stroke: #ff3b30; stroke-width: calc(2px / var(--zoom)); vector-effect: non-scaling-stroke; }
.view:hover .areas, .view:focus-within .areas { opacity: 1; }
.divider { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.divider::after { content: "\\2039\\a0\\203a"; position: absolute; top: 50%; left: 50%; width: 2rem; height: 2rem;
  margin: -1rem; border-radius: 50%; background: #fff; color: #333; text-align: center; line-height: 1.8rem;
  font-weight: 700; box-shadow: 0 0 4px #0008; }
.tag { position: absolute; bottom: .5rem; padding: .1rem .5rem; border-radius: 1rem; background: #000a; color: #fff;
  font-size: .8rem; pointer-events: none; }
.tag.left { left: .5rem; }
.tag.right { right: .5rem; }
.view input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
  touch-action: pan-y; appearance: none; -webkit-appearance: none; }
.view input::-webkit-slider-thumb { width: 2px; appearance: none; -webkit-appearance: none; }
.view input::-moz-range-thumb { width: 2px; border: 0; }
.choices { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0 0; padding: 0; border: 0; }
.choices legend { float: left; margin-right: 1rem; padding: 0; color: var(--soft); }
.hint { margin: .8rem 0 .2rem; color: var(--soft); font-size: .9rem; }
.list, .facts, section ul { margin: .2rem 0 0; padding-left: 1.4rem; }
.facts { margin-top: .6rem; color: var(--soft); }
button { font: inherit; color: var(--accent); background: none; border: 0; padding: .2rem 0; text-align: left;
  vertical-align: top;
  cursor: pointer; }
button[aria-pressed="true"] { font-weight: 600; text-decoration: underline; }
button:focus-visible { outline: 2px solid var(--accent); }
"""

SCRIPT = """
'use strict';
for (const view of document.querySelectorAll('.view')) {
  const card = view.parentElement, slider = view.querySelector('input');
  const [width, height] = ['--width', '--height'].map(name => Number(view.style.getPropertyValue(name)));
  slider.addEventListener('input', () => view.style.setProperty('--at', slider.value + '%'));
  for (const choice of card.querySelectorAll('.choices input'))
    choice.addEventListener('change', () => { view.querySelector('.after img').src = choice.value; });
  const buttons = [...card.querySelectorAll('button')];
  for (const button of buttons) button.addEventListener('click', () => {
    const close = button.getAttribute('aria-pressed') === 'false';
    for (const other of buttons) other.setAttribute('aria-pressed', close && other === button);
    const [x, y, w, h] = button.dataset.box.split(' ').map(Number);
    const zoom = close ? Math.max(1, Math.min(width / w, height / h, 32) / 1.5) : 1;
    const shift = (start, side, total) =>
      100 * Math.max(0, Math.min(start + side / 2 - total / zoom / 2, total - total / zoom)) / total;
    view.style.setProperty('--zoom', zoom);
    view.style.setProperty('--left', shift(x, w, width) + '%');
    view.style.setProperty('--top', shift(y, h, height) + '%');
  });
}
if (/^#\\d+$/.test(location.hash))  // page.html#25 moves all sliders
  for (const slider of document.querySelectorAll('.view input')) {
    slider.value = location.hash.slice(1);
    slider.dispatchEvent(new Event('input'));
  }
"""
