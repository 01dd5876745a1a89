// Draws what POST /explore answers: a panel for each layer, tokens across, experts down, and how much each was used.

const SVG = 'http://www.w3.org/2000/svg';
const element = (id) => document.getElementById(id);

let shown; // the answer on the page
let largest = 1; // weight in it
let chosen; // { panel, expert } that was clicked

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  explore();
});
explore();

async function explore() {
  const button = document.querySelector('button');
  button.disabled = true;
  try {
    const response = await fetch('explore', { method: 'POST', body: element('text').value });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    show(answer);
    element('problem').hidden = true;
  } catch (error) {
    element('problem').textContent = error.message;
    element('problem').hidden = false;
  }
  button.disabled = false;
}

function show(answer) {
  shown = answer;
  chosen = undefined;
  const { model, numExperts, topK, tokens, layers } = answer;
  largest = Math.max(...layers.flatMap(({ weights }) => weights.flat()));
  element('about').textContent =
    `${model}: ${topK} of ${numExperts} experts per token, in ${layers.length} layers; ${tokens.length} tokens`;
  element('largest').textContent = largest.toFixed(2);
  element('tokens').replaceChildren(...tokens.map(tokenSpan));
  element('layers').replaceChildren(...layers.map(panel));
  element('result').hidden = false;
  tint();
  point(undefined);
}

function tokenSpan(text, t) {
  const span = document.createElement('span');
  span.textContent = text;
  span.dataset.token = t;
  span.addEventListener('mouseenter', () => point(t));
  span.addEventListener('mouseleave', () => point(undefined));
  return span;
}

function panel(layer, index) {
  const article = document.createElement('article');
  article.className = 'layer';
  const title = document.createElement('h2');
  title.textContent = `Layer ${layer.layer}`;
  const note = document.createElement('small');
  note.textContent = layer.groups ? `${layer.groups.length} groups` : `${shown.numExperts} experts`;
  title.append(note);
  article.append(title, ticks(layer), grid(layer, index), bars(layer, index), ...axis());
  return article;
}

/** Experts from top to bottom: those of a group together, where there are groups. */
function order({ groups }) {
  return groups ? groups.flat() : Array.from({ length: shown.numExperts }, (_, i) => i);
}

/** The numbers of some experts, beside their rows. */
function ticks(layer) {
  const column = document.createElement('div');
  column.className = 'ticks';
  const apart = Math.ceil(14 / rowHeight());
  order(layer).forEach((expert, row) => {
    if (row % apart !== 0) return;
    const tick = document.createElement('span');
    tick.textContent = expert;
    tick.style.top = `${(row + 0.5) * rowHeight()}px`;
    column.append(tick);
  });
  return column;
}

/** The tokens below their columns, where there is room. */
function axis() {
  if (shown.tokens.length > 70) return [];
  const row = document.createElement('div');
  row.className = 'axis';
  for (const token of shown.tokens) {
    const label = document.createElement('span');
    label.textContent = token.trim() || '␣';
    row.append(label);
  }
  return [row];
}

function rowHeight() {
  return Math.max(3, Math.min(13, 260 / shown.numExperts));
}

function grid(layer, index) {
  const { tokens, numExperts } = shown;
  const height = rowHeight();
  const image = svg('svg', {
    viewBox: `0 0 ${tokens.length} ${numExperts}`,
    preserveAspectRatio: 'none',
    height: height * numExperts,
    role: 'img',
    'aria-label': `Experts of layer ${layer.layer}`,
  });
  image.append(svg('rect', { class: 'empty', width: tokens.length, height: numExperts }));
  const rowOf = new Map(order(layer).map((expert, row) => [expert, row]));
  layer.experts.forEach((experts, t) => {
    experts.forEach((expert, k) => {
      const strength = layer.weights[t][k] / largest;
      image.append(
        svg('rect', {
          class: 'cell',
          x: t,
          y: rowOf.get(expert),
          width: 1,
          height: 1,
          fill: `hsl(var(--hot) / ${(0.12 + 0.88 * strength ** 0.75).toFixed(3)})`,
          'data-token': t,
          'data-expert': expert,
        }),
      );
    });
  });
  let edge = 0;
  for (const group of (layer.groups ?? []).slice(0, -1)) {
    edge += group.length;
    image.append(svg('line', { class: 'group', x1: 0, x2: tokens.length, y1: edge, y2: edge }));
  }
  image.append(svg('rect', { class: 'row', x: 0, width: tokens.length, height: 1, visibility: 'hidden' }));
  image.append(svg('rect', { class: 'column', y: 0, width: 1, height: numExperts, visibility: 'hidden' }));
  const place = (event) => {
    const box = image.getBoundingClientRect();
    const t = Math.floor(((event.clientX - box.left) / box.width) * tokens.length);
    const row = Math.floor(((event.clientY - box.top) / box.height) * numExperts);
    return { t, expert: order(layer)[row] };
  };
  image.addEventListener('mousemove', (event) => point(place(event).t));
  image.addEventListener('mouseleave', () => point(undefined));
  image.addEventListener('click', (event) => choose(index, place(event).expert));
  return image;
}

/** The share of the tokens that each expert had. */
function bars(layer, index) {
  const { tokens, numExperts, topK } = shown;
  const counts = new Array(numExperts).fill(0);
  for (const experts of layer.experts) for (const expert of experts) counts[expert]++;
  const even = topK / numExperts;
  const most = Math.max(2 * even, Math.max(...counts) / tokens.length);
  const image = svg('svg', {
    viewBox: `0 0 1 ${numExperts}`,
    preserveAspectRatio: 'none',
    height: rowHeight() * numExperts,
  });
  order(layer).forEach((expert, row) => {
    const bar = svg('rect', {
      class: 'bar',
      y: row + 0.12,
      height: 0.76,
      width: counts[expert] / tokens.length / most,
      'data-expert': expert,
    });
    const title = svg('title', {});
    title.textContent = `Expert ${expert}: ${counts[expert]} of ${tokens.length} tokens`;
    bar.append(title);
    bar.addEventListener('click', () => choose(index, expert));
    image.append(bar);
  });
  image.append(svg('line', { class: 'even', x1: even / most, x2: even / most, y1: 0, y2: numExperts }));
  return image;
}

/** Marks a token everywhere, and says where it goes. */
function point(token) {
  for (const span of element('tokens').children)
    span.classList.toggle('here', Number(span.dataset.token) === token);
  for (const column of document.querySelectorAll('.column')) {
    column.setAttribute('visibility', token === undefined ? 'hidden' : 'visible');
    column.setAttribute('x', token ?? 0);
  }
  element('hint').textContent = token === undefined ? advice() : destinations(token);
}

function advice() {
  if (!chosen)
    return 'Point at a token to follow it through the layers; click an expert to see what it reads.';
  const { layer } = shown.layers[chosen.panel];
  return `Shaded: the tokens of expert ${chosen.expert} in layer ${layer}. Click it again to let go.`;
}

function destinations(token) {
  const places = shown.layers.slice(0, 6).map(({ layer, experts, weights }) => {
    const names = experts[token].map((expert, k) => `${expert} (${weights[token][k].toFixed(2)})`);
    return `layer ${layer}: ${names.join(', ')}`;
  });
  return `${JSON.stringify(shown.tokens[token])} goes to ${places.join(' · ')}${shown.layers.length > 6 ? ' …' : ''}`;
}

function choose(panel, expert) {
  chosen = chosen?.panel === panel && chosen.expert === expert ? undefined : { panel, expert };
  tint();
  point(undefined);
}

/** Shades the text by the weight of the chosen expert. */
function tint() {
  const layer = chosen && shown.layers[chosen.panel];
  for (const span of element('tokens').children) {
    const t = Number(span.dataset.token);
    const k = layer ? layer.experts[t].indexOf(chosen.expert) : -1;
    span.style.background =
      k < 0 ? '' : `hsl(var(--hot) / ${(0.15 + (0.75 * layer.weights[t][k]) / largest).toFixed(3)})`;
  }
  for (const [index, article] of [...element('layers').children].entries()) {
    const here = chosen?.panel === index;
    const row = article.querySelector('.row');
    row.setAttribute('visibility', here ? 'visible' : 'hidden');
    if (here) row.setAttribute('y', order(layer).indexOf(chosen.expert));
    for (const bar of article.querySelectorAll('.bar'))
      bar.classList.toggle('chosen', here && Number(bar.dataset.expert) === chosen.expert);
  }
}

function svg(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
