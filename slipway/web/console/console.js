// The page: connects, lists what a server offers, calls it, and shows what came of it.

import { ChecksPanel } from './checks-panel.js';
import { copy, el, newId, pretty } from './dom.js';
import { argumentsForm } from './form.js';
import { Client } from './mcp.js';
import { cut } from './wire.js';
import { WirePanel } from './wire-panel.js';

const $ = (id) => document.getElementById(id);
const SHOWN = 200_000;
const wire = new WirePanel($('panel-wire'));
const observe = (record) => wire.observe(record);
const target = () => ({ url: $('url').value.trim(), token: $('token').value.trim().replace(/^Bearer\s+/i, ''), origin: location.origin, observe });
let client = null;
let connection = null; // aborts what belongs to the present connection

new ChecksPanel($('panel-checks'), target);

function say(text, kind = '') {
  $('status').textContent = text.slice(0, 2000);
  $('status').className = kind;
}

// --- tabs

const tabs = [...document.querySelectorAll('[role=tab]')];
function show(tab) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute('aria-selected', String(selected));
    each.tabIndex = selected ? 0 : -1;
    $(each.getAttribute('aria-controls')).hidden = !selected;
  }
}
for (const tab of tabs) {
  tab.addEventListener('click', () => show(tab));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = event.key === 'Home' ? tabs[0] : event.key === 'End' ? tabs.at(-1) : step && tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    if (!next) return;
    event.preventDefault();
    show(next);
    next.focus();
  });
}

// --- connecting

$('connect').addEventListener('submit', (event) => { event.preventDefault(); connect(); });
$('leave').addEventListener('click', () => leave());
$('show').addEventListener('click', () => {
  const hidden = $('token').type === 'password';
  $('token').type = hidden ? 'text' : 'password';
  $('show').textContent = hidden ? 'Hide' : 'Show';
  $('show').setAttribute('aria-pressed', String(hidden));
});

async function leave() {
  connection?.abort();
  const former = client;
  [client, connection] = [null, null];
  $('leave').hidden = true;
  $('server').hidden = true;
  for (const name of ['tools', 'resources', 'prompts']) $(`panel-${name}`).replaceChildren(el('p', { class: 'hint' }, `Connect to see the ${name}.`));
  say('Not connected.');
  await former?.disconnect().catch(() => {});
}

async function connect() {
  await leave();
  const { url, token } = target();
  try {
    if (!/^https?:$/.test(new URL(url).protocol)) throw new TypeError();
  } catch {
    return say('This is no http or https URL.', 'bad');
  }
  const mine = new AbortController();
  const made = new Client({ url, token, observe, onMessage: (message) => heard(message) });
  connection = mine;
  $('go').disabled = true;
  say('Connecting …');
  try {
    await made.connect($('era').value, mine.signal);
    client = made;
    $('leave').hidden = false;
    describe(made, mine);
    say(`Connected to ${made.server.info.name || 'a server'}.`, 'good');
    await Promise.all([list(made, 'tools', 'tools/list', toolItem), listResources(made), list(made, 'prompts', 'prompts/list', promptItem)]);
  } catch (error) {
    if (!mine.signal.aborted) say(error.message, 'bad');
  } finally {
    $('go').disabled = false;
  }
}

function describe(made, mine) {
  const { info, capabilities, instructions } = made.server;
  const listening = el('button', { class: 'quiet', hidden: made.era !== 'handshake' || !made.session, onclick: () => listen(made, mine, listening) }, 'Listen (GET stream)');
  $('server').replaceChildren(
    el('dl', {}, ...[
      ['server', `${info.title || info.name || '?'} ${info.version || ''}`], ['era', `${made.version}, ${made.session ? 'with a session' : 'stateless'}`],
      ['session', made.session], ['can', Object.keys(capabilities).join(', ')],
    ].filter(([, value]) => value).flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, String(value).slice(0, 500))])),
    instructions ? el('details', {}, el('summary', {}, 'Instructions'), el('p', {}, String(instructions).slice(0, 5000))) : '',
    listening, el('ul', { id: 'heard', class: 'hint', 'aria-live': 'polite' }),
  );
  $('server').hidden = false;
}

async function listen(made, mine, button) {
  button.disabled = true;
  button.textContent = 'Listening …';
  try {
    await made.listen(mine.signal);
    heard({ method: 'the server ended the stream' });
  } catch (error) {
    if (!mine.signal.aborted) heard({ problem: error.message });
  }
  button.disabled = false;
  button.textContent = 'Listen (GET stream)';
}

// What the server says of its own accord.
function heard(message) {
  const list = $('heard');
  if (!list) return;
  list.append(el('li', {}, (message.problem || `${message.method} ${message.params ? JSON.stringify(message.params) : ''}`).slice(0, 500)));
  while (list.children.length > 50) list.firstElementChild.remove();
}

async function list(made, name, method, item) {
  const panel = $(`panel-${name}`);
  try {
    const found = await made.list(method, name, connection?.signal);
    if (client !== made) return;
    $(`tab-${name}`).textContent = `${name[0].toUpperCase()}${name.slice(1)} (${found.length})`;
    panel.replaceChildren(...(found.length ? found.map((each) => item(each)) : [el('p', { class: 'hint' }, 'There are none.')]));
  } catch (error) {
    if (client === made) panel.replaceChildren(el('p', { class: 'hint' }, error.code === -32601 ? 'The server offers none.' : error.message));
  }
}

async function listResources(made) {
  await list(made, 'resources', 'resources/list', resourceItem);
  try {
    const templates = await made.list('resources/templates/list', 'resourceTemplates', connection?.signal);
    if (client === made && templates.length) $('panel-resources').append(el('h2', {}, 'Templates'), ...templates.map((each) => templateItem(each)));
  } catch {
    // a server without templates
  }
}

// --- items

const titleOf = (thing) => String(thing.title || thing.annotations?.title || thing.name || thing.uri || '?').slice(0, 200);

// A foldable item with a form and a button; `act(values, options)` sends, `draw(result)` shows.
function item(thing, form, verb, act, draw) {
  const output = el('div', { class: 'result', 'aria-live': 'polite' });
  const send = el('button', {}, verb);
  const cancel = el('button', { type: 'button', class: 'quiet', hidden: true }, 'Cancel');
  const body = el('form', { noValidate: true }, form.node, el('div', { class: 'actions' }, send, cancel));
  body.addEventListener('submit', async (event) => {
    event.preventDefault();
    let values;
    try {
      values = form.read();
    } catch (error) {
      output.replaceChildren(el('p', { class: 'problem' }, error.message));
      error.node?.focus();
      return;
    }
    const run = new AbortController();
    cancel.onclick = () => run.abort();
    [send.disabled, cancel.hidden] = [true, false];
    const bar = el('progress', { 'aria-label': 'Progress', hidden: true });
    const told = el('p', { class: 'spans' });
    const logs = el('pre', { class: 'logs', hidden: true, 'aria-label': 'Log messages' });
    output.replaceChildren(bar, told, logs);
    const started = performance.now();
    try {
      const result = await act(values, {
        signal: run.signal,
        onProgress({ progress, total, message }) {
          bar.hidden = false;
          if (total > 0) [bar.max, bar.value] = [Number(total), Number(progress) || 0];
          told.textContent = `${progress}${total ? ` of ${total}` : ''} ${message || ''}`.slice(0, 300);
        },
        onLog({ level, data }) {
          logs.hidden = false;
          const text = typeof data === 'string' ? data : typeof data?.msg === 'string' ? data.msg : JSON.stringify(data);
          logs.textContent = `${logs.textContent}+${Math.round(performance.now() - started)} ms ${level || ''} ${text}\n`.slice(-20_000);
        },
      });
      output.append(el('p', { class: 'spans' }, `${Math.round(performance.now() - started)} ms`), ...draw(result));
    } catch (error) {
      output.append(el('p', { class: 'problem' }, run.signal.aborted ? 'Cancelled.' : error.message));
      if (error.data !== undefined) output.append(el('pre', {}, cut(pretty(error.data), SHOWN)));
    } finally {
      [send.disabled, cancel.hidden] = [false, true];
    }
  });
  return el('details', { class: 'item' },
    el('summary', {}, titleOf(thing), el('span', { class: 'hint' }, thing.title && thing.name !== thing.title ? thing.name : '')),
    thing.description ? el('p', {}, String(thing.description).slice(0, 5000)) : '', body, output);
}

function toolItem(tool) {
  return item(tool, argumentsForm(tool.inputSchema || {}), 'Call', (values, options) => client.callTool(tool, values, options), (result) => [
    result.isError ? el('p', { class: 'problem' }, 'The tool answers with an error:') : '',
    ...(Array.isArray(result.content) ? result.content : []).map((each) => content(each)),
    result.structuredContent !== undefined ? el('details', {}, el('summary', {}, 'structuredContent'), el('pre', {}, cut(pretty(result.structuredContent), SHOWN))) : '',
    whole(result),
  ]);
}

const nothing = { node: '', read: () => ({}) };
const read = (uri, options) => client.request('resources/read', { uri }, options);
const contents = (result) => [...(Array.isArray(result.contents) ? result.contents : []).map((each) => content({ type: 'resource', resource: each })), whole(result)];

function resourceItem(resource) {
  return item({ ...resource, title: resource.title || resource.name }, { ...nothing, node: el('p', {}, el('code', {}, String(resource.uri).slice(0, 500))) }, 'Read', (_, options) => read(resource.uri, options), contents);
}

function templateItem(template) {
  const names = [...new Set([...String(template.uriTemplate).matchAll(/\{[+#./;?&]?([A-Za-z0-9_.,*]+)\}/g)].flatMap((found) => found[1].split(',')).map((name) => name.replace('*', '')))].slice(0, 20);
  const form = argumentsForm({ properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])), required: names });
  // simple expansion (RFC 6570, level 1); a "+" leaves reserved characters as they are
  const expand = (values) => String(template.uriTemplate).replace(/\{([+]?)([A-Za-z0-9_.]+)\*?\}/g, (_, plus, name) => (plus ? encodeURI(values[name] ?? '') : encodeURIComponent(values[name] ?? '')));
  form.node.prepend(el('p', {}, el('code', {}, String(template.uriTemplate).slice(0, 500))));
  return item(template, form, 'Read', (values, options) => read(expand(values), options), contents);
}

function promptItem(prompt) {
  const given = Array.isArray(prompt.arguments) ? prompt.arguments : [];
  const properties = Object.fromEntries(given.map((each) => [each.name, { type: 'string', description: each.description }]));
  const form = argumentsForm({ properties, required: given.filter((each) => each.required).map((each) => each.name) });
  return item(prompt, form, 'Get', (values, options) => client.request('prompts/get', { name: prompt.name, arguments: values }, options), (result) => [
    ...(Array.isArray(result.messages) ? result.messages : []).flatMap((message) => [el('h3', {}, String(message.role)), content(message.content || {})]), whole(result),
  ]);
}

function whole(result) {
  const text = pretty(result);
  const button = el('button', { class: 'quiet', type: 'button', onclick: () => copy(text, button) }, 'Copy');
  return el('details', {}, el('summary', {}, 'Raw result'), button, el('pre', {}, cut(text, SHOWN)));
}

// One piece of content, by its type; what is not known is shown as JSON.
function content(part) {
  const media = /^(image\/(png|jpeg|gif|webp)|audio\/[a-z0-9.+-]+)$/.test(part.mimeType || '') && typeof part.data === 'string' && part.data.length < 8_000_000;
  if (part.type === 'text') return el('pre', {}, cut(asJson(String(part.text)), SHOWN));
  if (part.type === 'image' && media) return el('img', { src: `data:${part.mimeType};base64,${part.data}`, alt: 'image from the tool' });
  if (part.type === 'resource' && part.resource) {
    const { uri, mimeType, text, blob } = part.resource;
    const id = newId('resource');
    return el('div', { 'aria-labelledby': id }, el('p', { id, class: 'spans' }, el('code', {}, `${uri} ${mimeType || ''}`.slice(0, 500))),
      text === undefined ? el('p', { class: 'hint' }, `${String(blob || '').length} characters of base64`) : el('pre', {}, cut(asJson(String(text)), SHOWN)));
  }
  return el('pre', {}, cut(pretty(part), SHOWN));
}

function asJson(text) {
  if (!/^\s*[[{]/.test(text) || text.length > SHOWN) return text;
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}

// --- the link that opened us: its fragment never reaches a server, and leaves the address at once

const given = new URLSearchParams(location.hash.slice(1));
if (location.hash) history.replaceState(null, '', location.pathname);
$('origin').textContent = location.origin;
const usual = ['https://localhost:8443/mcp', 'http://localhost:8080/mcp']; // without a link nobody says which ports are ours
const known = given.get('url') ? [given.get('url'), ...(given.get('also') || '').split(',')] : usual;
const targets = [...new Set(known.filter((each) => each && /^https?:\/\//.test(each)))].slice(0, 6);
$('url').value = targets[0];
$('token').value = given.get('token') || '';
$('targets').append(...targets.map((value) => el('option', { value })));
$('choices').append(...targets.map((value) => el('button', { type: 'button', class: 'quiet', onclick: () => { $('url').value = value; $('url').focus(); } }, value)));
if (given.get('url') && given.get('token')) connect();

