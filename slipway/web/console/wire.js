// One HTTP exchange: a fetch that is timed, recorded for the Wire panel, and read as events, JSON or text.

import { EventStreamParser } from './sse.js';

export const KEPT = 256 * 1024;
let count = 0;

export const isLoopback = (url) => /^(localhost|.+\.localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(new URL(url).hostname);

export function cut(text, longest = KEPT) {
  return text.length > longest ? `${text.slice(0, longest)}\n… cut: ${text.length} characters in all` : text;
}

// Starts an exchange. `observe(record)` is called at every change of the record.
export async function exchange(url, { label, observe = () => {}, ...init } = {}) {
  const headers = { ...init.headers };
  if (init.mode !== 'no-cors' && init.plain !== true && !isLoopback(url)) headers['ngrok-skip-browser-warning'] = '1';
  const started = performance.now();
  const record = {
    id: ++count, at: new Date(), url, http: init.method || 'GET', label: label || init.method || 'GET',
    requestHeaders: headers, requestBody: init.body || '', responseHeaders: [], events: [], body: '', status: null,
    headersMs: null, firstByteMs: null, firstEventMs: null, totalMs: null, error: '', kept: 0,
    elapsed: () => performance.now() - started,
    changed: () => observe(record),
  };
  record.changed();
  try {
    const response = await fetch(url, { ...init, headers, cache: 'no-store', credentials: 'omit', referrerPolicy: 'no-referrer' });
    record.headersMs = record.elapsed();
    record.status = response.status;
    record.type = response.type;
    record.responseHeaders = [...response.headers];
    record.response = response;
    record.changed();
    return record;
  } catch (error) {
    fail(record, error);
    throw error;
  }
}

function fail(record, error) {
  record.error = error.name === 'AbortError' ? 'aborted by this page' : `${error.message}`;
  record.totalMs = record.elapsed();
  record.changed();
}

function keep(record, event) {
  record.kept += event.raw.length;
  if (record.kept < KEPT) record.events.push({ ms: record.elapsed(), text: event.raw });
  else if (!record.full) record.events.push({ ms: record.elapsed(), text: `… later events are not kept: over ${KEPT / 1024} KB` });
  record.full = record.kept >= KEPT;
}

// Reads the body to its end. `onEvent(event)` may return true to stop early. Resolves to the text when it was no event stream.
export async function readBody(record, onEvent = () => false) {
  const { response } = record;
  const isStream = (response.headers.get('content-type') || '').startsWith('text/event-stream');
  const finish = () => {
    record.totalMs = record.elapsed();
    record.changed();
  };
  try {
    if (!isStream || !response.body) {
      const text = await response.text();
      record.firstByteMs = record.firstEventMs = record.elapsed();
      record.body = cut(text);
      return { text, isStream: false };
    }
    const reader = response.body.getReader();
    const parser = new EventStreamParser();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { text: '', isStream: true };
      record.firstByteMs ??= record.elapsed();
      for (const event of parser.push(value)) {
        if (event.comment === undefined) record.firstEventMs ??= record.elapsed();
        keep(record, event);
        record.changed();
        if (onEvent(event)) {
          reader.cancel().catch(() => {});
          return { text: '', isStream: true };
        }
      }
    }
  } catch (error) {
    fail(record, error);
    throw error;
  } finally {
    finish();
  }
}
