// The Wire tab: every exchange with its headers, events and times, and as a curl command.

import { copy, el } from './dom.js';
import { cut, isLoopback } from './wire.js';

const KEPT = 200;
const ms = (value) => (value === null ? '–' : `${Math.round(value)} ms`);
const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

// The command that sends the same; the token stands as $TOKEN unless it is asked for.
export function asCurl(record, withToken) {
  const words = ['curl -sS -N -i'];
  if (record.url.startsWith('https:') && isLoopback(record.url)) words.push('--cacert .slipway/caddy/pki/authorities/local/root.crt');
  if (record.http !== 'GET' && !(record.http === 'POST' && record.requestBody)) words.push(`-X ${record.http}`);
  words.push(quoted(record.url));
  for (const [name, value] of Object.entries(record.requestHeaders)) {
    const secret = name === 'Authorization' && !withToken;
    words.push(secret ? `-H "Authorization: Bearer $TOKEN"` : `-H ${quoted(`${name}: ${value}`)}`);
  }
  if (record.requestBody) words.push(`--data-raw ${quoted(record.requestBody)}`);
  return words.join(' ');
}

const masked = (name, value) => (name.toLowerCase() === 'authorization' ? 'Bearer …' : value);
const headerList = (pairs) => pairs.map(([name, value]) => `${name}: ${masked(name, value)}`).join('\n') || '(none that a page may read)';

export class WirePanel {
  #rows = new Map();

  constructor(panel) {
    this.withToken = el('input', { type: 'checkbox' });
    this.list = el('div', {});
    panel.replaceChildren(
      el('p', { class: 'hint' }, 'Every exchange, the newest first. A browser does not show a page its preflights; ./scripts/doctor does.'),
      el('div', { class: 'actions' }, el('label', { class: 'check' }, this.withToken, ' curl with the token'),
        el('button', { class: 'quiet', onclick: () => { this.list.replaceChildren(); this.#rows.clear(); } }, 'Clear')),
      this.list,
    );
  }

  // Called at every change of a record; draws at most once a frame.
  observe(record) {
    let row = this.#rows.get(record);
    if (!row) {
      row = el('details', { class: 'exchange' }, el('summary'));
      row.addEventListener('toggle', () => this.#draw(record, row));
      this.#rows.set(record, row);
      this.list.prepend(row);
      if (this.#rows.size > KEPT) {
        const [oldest, node] = this.#rows.entries().next().value;
        node.remove();
        this.#rows.delete(oldest);
      }
    }
    if (!row.waiting) {
      row.waiting = true;
      requestAnimationFrame(() => { row.waiting = false; this.#draw(record, row); });
    }
  }

  #draw(record, row) {
    const state = record.error || (record.status === null ? '…' : record.type === 'opaque' ? 'opaque' : record.status);
    row.firstElementChild.replaceChildren(
      el('code', {}, `${record.http} `), el('strong', {}, record.label), ' → ', el('span', { class: record.error ? 'problem' : '' }, String(state)),
      el('span', { class: 'hint' }, `head ${ms(record.headersMs)} · first ${ms(record.firstByteMs)} · all ${ms(record.totalMs)} · ${record.events.length} events`),
    );
    while (row.children.length > 1) row.lastElementChild.remove();
    if (!row.open) return;
    const button = el('button', { class: 'quiet', onclick: () => copy(asCurl(record, this.withToken.checked), button) }, 'Copy as curl');
    row.append(...[
      el('p', { class: 'spans' }, `${record.at.toLocaleTimeString()} · ${record.url}`), button,
      el('h3', {}, 'Sent'), el('pre', {}, `${headerList(Object.entries(record.requestHeaders))}\n\n${cut(record.requestBody)}`),
      el('h3', {}, 'Came back'), el('pre', {}, `${headerList(record.responseHeaders)}\n\n${cut(record.body)}`),
      record.events.length && el('pre', { class: 'events' }, record.events.map((event) => `+${Math.round(event.ms)} ms\n${event.text}`).join('\n\n')),
    ].filter(Boolean));
  }
}
