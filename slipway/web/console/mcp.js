// A client of the Model Context Protocol over Streamable HTTP, in both eras: stateless (2026-07-28) and with a handshake.

import { exchange, readBody } from './wire.js';

export const NEWEST = '2026-07-28';
export const HANDSHAKE = '2025-11-25';
export const ACCEPT = 'application/json, text/event-stream';
const META = 'io.modelcontextprotocol/';
const INFO = { name: 'slipway-console', title: 'Slipway console', version: '1' };
const NAMED = { 'tools/call': 'name', 'prompts/get': 'name', 'resources/read': 'uri' };
const PAGES = 50;

export class McpError extends Error {
  constructor(message, more = {}) {
    super(message);
    Object.assign(this, { name: 'McpError' }, more);
  }
}

export function headerValue(text) {
  const safe = /^[\x20-\x7e]*$/.test(text) && text === text.trim() && !/^=\?base64\?.*\?=$/.test(text);
  if (safe) return text;
  return `=?base64?${btoa(String.fromCharCode(...new TextEncoder().encode(text)))}?=`;
}

// The Mcp-Param-* headers that a tool's schema asks for with x-mcp-header.
export function paramHeaders(schema, values, found = {}) {
  for (const [key, part] of Object.entries(schema?.properties || {})) {
    const value = values?.[key];
    if (value === undefined || value === null) continue;
    const token = part?.['x-mcp-header'];
    if (typeof token === 'string' && typeof value !== 'object') found[`Mcp-Param-${token}`] = headerValue(String(value));
    if (part?.properties && typeof value === 'object') paramHeaders(part, value, found);
  }
  return found;
}

export function newestMeta(more = {}) {
  return {
    [`${META}protocolVersion`]: NEWEST, [`${META}clientCapabilities`]: {}, [`${META}clientInfo`]: INFO, ...more,
  };
}

export function initializeBody(id = 1) {
  const params = { protocolVersion: HANDSHAKE, capabilities: {}, clientInfo: INFO };
  return JSON.stringify({ jsonrpc: '2.0', id, method: 'initialize', params });
}

// What an answer of HTTP's says, in words.
export function statusWords(response, text = '') {
  const challenge = response.headers.get('www-authenticate');
  const retry = response.headers.get('retry-after');
  const words = {
    401: 'The server wants a (valid) token.', 403: 'Refused: this token or this origin may not do that.',
    404: 'There is no MCP server at this path, or the session has ended: connect again.',
    405: 'The server does not take this HTTP method here.', 406: 'The server wants another Accept header.',
    413: 'The request body is too large.', 421: 'A guard does not know this Host.', 429: 'Too many requests.',
  };
  return [
    `HTTP ${response.status}.`, words[response.status] || (response.status >= 500 ? 'The server is unwell.' : ''),
    challenge ? `WWW-Authenticate: ${challenge}` : '', retry ? `Retry-After: ${retry} s` : '', text.slice(0, 600),
  ].filter(Boolean).join(' ');
}

export class Client {
  constructor({ url, token, observe, onMessage = () => {} }) {
    Object.assign(this, { url, token, observe, onMessage });
    this.ids = 0;
    this.era = null;
    this.session = null;
    this.version = null;
    this.server = {};
  }

  async connect(choice, signal) {
    if (choice === 'handshake') return this.#handshake(signal);
    try {
      return await this.#discover(signal);
    } catch (error) {
      // a refusal by the token is one in either era; anything else may be an older server
      if (choice === 'newest' || signal?.aborted || error.unreachable || [401, 403, 429].includes(error.status)) throw error;
      return this.#handshake(signal);
    }
  }

  async #discover(signal) {
    this.era = 'newest';
    this.version = NEWEST;
    const result = await this.request('server/discover', {}, { signal });
    const info = result._meta?.[`${META}serverInfo`] || result.serverInfo || {};
    this.server = { info, capabilities: result.capabilities || {}, instructions: result.instructions };
  }

  async #handshake(signal) {
    Object.assign(this, { era: 'handshake', version: null, session: null });
    const params = JSON.parse(initializeBody()).params;
    const result = await this.request('initialize', params, {
      signal, onHead: (head) => { this.session = head.get('mcp-session-id'); },
    });
    this.version = result.protocolVersion || HANDSHAKE;
    this.server = { info: result.serverInfo || {}, capabilities: result.capabilities || {}, instructions: result.instructions };
    await this.notify('notifications/initialized');
  }

  #headers(method, params, more) {
    const headers = { Accept: ACCEPT, 'Content-Type': 'application/json', ...more };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    if (this.version) headers['MCP-Protocol-Version'] = this.version;
    if (this.session) headers['Mcp-Session-Id'] = this.session;
    if (this.era === 'newest') {
      headers['Mcp-Method'] = method;
      const name = params?.[NAMED[method]];
      if (name !== undefined) headers['Mcp-Name'] = headerValue(String(name));
    }
    return headers;
  }

  async #post(label, message, headers, signal) {
    try {
      return await exchange(this.url, {
        method: 'POST', headers, body: JSON.stringify(message), signal, label, observe: this.observe,
      });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new McpError('No answer that this page may read: the server is not reachable, or CORS refuses. The Checks tab finds out which.', { unreachable: true });
    }
  }

  // Sends a request and resolves to its result; notifications that arrive before it go to onProgress and onLog.
  async request(method, params = {}, { signal, onProgress, onLog, onHead, headers = {} } = {}) {
    const id = ++this.ids;
    const meta = { ...(onProgress && { progressToken: id }) };
    if (this.era === 'newest') Object.assign(meta, newestMeta(onLog && { [`${META}logLevel`]: 'debug' }));
    const sent = Object.keys(meta).length ? { ...params, _meta: { ...params._meta, ...meta } } : params;
    const label = params.name || params.uri ? `${method} ${params.name || params.uri}` : method;
    const record = await this.#post(label, { jsonrpc: '2.0', id, method, params: sent }, this.#headers(method, params, headers), signal);
    let answer = null;
    const take = (text) => {
      let message;
      try {
        message = JSON.parse(text);
      } catch {
        this.onMessage({ problem: `an event that is not JSON: ${text.slice(0, 200)}` });
        return false;
      }
      if (message?.id === id && ('result' in message || 'error' in message)) {
        answer = message;
        return true;
      }
      if (message?.method === 'notifications/progress' && onProgress) onProgress(message.params || {});
      else if (message?.method === 'notifications/message' && onLog) onLog(message.params || {});
      else if (message) this.onMessage(message);
      return false;
    };
    let body;
    try {
      body = await readBody(record, (event) => event.data !== undefined && take(event.data));
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new McpError(`The connection broke after ${(record.totalMs / 1000).toFixed(1)} s, before the result.`, { cut: true, record });
    }
    const { response } = record;
    const status = response.status;
    const more = { status, record, challenge: response.headers.get('www-authenticate'), retryAfter: response.headers.get('retry-after') };
    if (!body.isStream) {
      try {
        answer = JSON.parse(body.text);
      } catch {
        if (!response.ok) throw new McpError(statusWords(response, body.text), more);
        const html = /^\s*<(!doctype|html)/i.test(body.text);
        throw new McpError(html ? 'This is a web page, not an MCP server: the URL usually ends in /mcp.' : 'The answer is not JSON: is this an MCP server?', more);
      }
    }
    if (answer?.error) throw new McpError(`${answer.error.message ?? 'error'} (JSON-RPC ${answer.error.code})`, { ...more, code: answer.error.code, data: answer.error.data });
    if (!response.ok) throw new McpError(statusWords(response, body.text), more);
    if (!answer) throw new McpError(`The stream ended after ${(record.totalMs / 1000).toFixed(1)} s without the result.`, { ...more, cut: true });
    if (typeof answer.result !== 'object' || answer.result === null) throw new McpError('The answer is JSON, but not JSON-RPC: is this an MCP server?', more);
    onHead?.(response.headers);
    return answer.result;
  }

  async notify(method, params) {
    const record = await this.#post(method, { jsonrpc: '2.0', method, ...(params && { params }) }, this.#headers(method, params));
    await readBody(record);
  }

  // Every page of a list; `key` is the field that holds it.
  async list(method, key, signal) {
    const items = [];
    let cursor;
    for (let page = 0; page < PAGES; page += 1) {
      const result = await this.request(method, cursor === undefined ? {} : { cursor }, { signal });
      if (Array.isArray(result[key])) items.push(...result[key].filter((item) => item && typeof item === 'object'));
      if (result.nextCursor === undefined || result.nextCursor === null || result.nextCursor === cursor) break;
      cursor = result.nextCursor;
    }
    return items;
  }

  async callTool(tool, values, options) {
    const headers = this.era === 'newest' ? paramHeaders(tool.inputSchema, values) : {};
    const params = { name: tool.name, arguments: values };
    const id = this.ids + 1;
    options.signal?.addEventListener('abort', () => {
      if (this.era === 'handshake') this.notify('notifications/cancelled', { requestId: id, reason: 'cancelled in the console' }).catch(() => {});
    }, { once: true });
    return this.request('tools/call', params, { ...options, headers });
  }

  // The handshake era's GET stream, until the signal or the server ends it.
  async listen(signal) {
    const headers = this.#headers();
    delete headers['Content-Type'];
    headers.Accept = 'text/event-stream';
    const record = await exchange(this.url, { headers, signal, label: 'GET stream', observe: this.observe });
    if (!record.response.ok) throw new McpError(statusWords(record.response, (await readBody(record)).text), { status: record.status });
    await readBody(record, (event) => {
      if (event.data) {
        try {
          this.onMessage(JSON.parse(event.data));
        } catch {
          this.onMessage({ problem: 'an event that is not JSON' });
        }
      }
      return false;
    });
  }

  async disconnect() {
    if (!this.session) return;
    const headers = this.#headers();
    delete headers['Content-Type'];
    this.session = null;
    const record = await exchange(this.url, { method: 'DELETE', headers, label: 'DELETE session', observe: this.observe });
    await readBody(record);
  }
}
