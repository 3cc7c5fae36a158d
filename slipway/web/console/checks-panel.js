// The Checks tab: the CORS test bench as a list, each line with what was sent, what came back, and what to change.

import { CHECKS, runChecks } from './checks.js';
import { el } from './dom.js';

const SIGNS = { ok: '✓', warning: '!', failure: '✗', 'not-applicable': '·' };
const FRAME_SECONDS = 4;

// Lets a page of another, not allowed origin try. Resolves to {readable, origin}, or null where it does not load.
export function foreignPage(url) {
  const origin = `http://foreign.localhost:${location.port || 80}`;
  const frame = el('iframe', { src: `${origin}/frame.html`, hidden: true, title: 'a page of another origin' });
  return new Promise((resolve) => {
    const finish = (found) => {
      removeEventListener('message', heard);
      clearTimeout(timer);
      frame.remove();
      resolve(found);
    };
    let timer = setTimeout(() => finish(null), FRAME_SECONDS * 1000);
    const heard = (message) => {
      if (message.source !== frame.contentWindow || message.origin !== origin) return;
      if (message.data?.ready) {
        clearTimeout(timer);
        timer = setTimeout(() => finish(null), 10_000);
        frame.contentWindow.postMessage({ url }, origin);
      } else {
        finish({ readable: message.data?.readable === true, origin });
      }
    };
    addEventListener('message', heard);
    document.body.append(frame);
  });
}

export class ChecksPanel {
  #rows = {};
  #run = null;

  constructor(panel, context) {
    this.context = context;
    this.all = el('button', { onclick: () => (this.#run ? this.#run.abort() : this.run(CHECKS)) }, 'Run all checks');
    this.summary = el('p', { role: 'status', 'aria-live': 'polite' });
    const rows = CHECKS.map((check) => {
      const row = el('details', { class: 'check-row', id: `check-${check.id}` });
      this.#rows[check.id] = row;
      this.#draw(check, null, []);
      return row;
    });
    panel.replaceChildren(
      el('p', { class: 'hint' }, 'These run in this browser, as a page of ', el('code', {}, location.origin), '. Chrome may ask whether this page may look for devices on the local network: that is for the loopback address.'),
      el('div', { class: 'actions' }, this.all), this.summary, ...rows,
    );
  }

  async run(checks) {
    const run = new AbortController();
    this.#run = run;
    this.all.textContent = 'Stop';
    const counts = { ok: 0, warning: 0, failure: 0, 'not-applicable': 0 };
    for (const { id } of checks) this.#rows[id].classList.add('running');
    await runChecks(checks, { ...this.context(), signal: run.signal, frame: foreignPage }, (check, finding, exchanges) => {
      counts[finding.verdict] += 1;
      this.#draw(check, finding, exchanges);
      this.summary.textContent = `${counts.ok} ok, ${counts.failure} failed, ${counts.warning} to look at, ${counts['not-applicable']} not applicable`;
    });
    for (const { id } of checks) this.#rows[id].classList.remove('running');
    this.#run = null;
    this.all.textContent = 'Run all checks';
    this.summary.textContent += run.signal.aborted ? ' (stopped)' : '. Done.';
  }

  #draw(check, finding, exchanges) {
    const row = this.#rows[check.id];
    row.className = `check-row ${finding?.verdict || ''}`;
    row.dataset.verdict = finding?.verdict || '';
    const again = el('button', { class: 'quiet', onclick: () => this.run([check]), 'aria-label': `Run ${check.title}` }, 'Run');
    row.replaceChildren(
      el('summary', {}, el('span', { class: 'verdict' }, SIGNS[finding?.verdict] || '?'), check.title,
        finding && el('span', { class: 'hint' }, ` ${finding.verdict.replace('-', ' ')}: ${finding.saw}`)),
      finding?.cause ? el('p', {}, finding.cause) : '',
      finding?.cure ? el('p', { class: 'cure' }, '→ ', el('code', {}, finding.cure)) : '',
      exchanges.length ? el('dl', {}, exchanges.slice(-8).flatMap((each) => [
        el('dt', {}, `${each.http} ${each.label === each.http ? '' : each.label}`),
        el('dd', {}, el('code', {}, `${Object.keys(each.requestHeaders).join(', ') || 'no headers'} → ${each.error || each.status || each.type || '…'}${each.responseHeaders.length ? ` · ${each.responseHeaders.map(([name]) => name).join(', ')}` : ''}`)),
      ])) : '', again,
    );
    row.open = finding?.verdict === 'failure' || finding?.verdict === 'warning';
  }
}
