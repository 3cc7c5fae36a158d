// The CORS test bench: checks that really run in this browser. Each says what it saw, why that is bad, and what to change.

import { ACCEPT, Client, HANDSHAKE, initializeBody, newestMeta, NEWEST } from './mcp.js';
import { exchange, isLoopback, readBody } from './wire.js';

const SECONDS = 10;
const STEPS = { n: 6, seconds: 0.5 };
const LASTING = STEPS.n * STEPS.seconds * 1000;
const DISCOVER = { id: 3, method: 'server/discover', params: { _meta: newestMeta() } };
const DISCOVERING = { 'MCP-Protocol-Version': NEWEST, 'Mcp-Method': 'server/discover' };
const EXPOSE = 'Access-Control-Expose-Headers: Mcp-Session-Id, WWW-Authenticate, Retry-After';

const ok = (saw) => ({ verdict: 'ok', saw });
const warning = (saw, cause, cure) => ({ verdict: 'warning', saw, cause, cure });
const failure = (saw, cause, cure) => ({ verdict: 'failure', saw, cause, cure });
const skip = (saw) => ({ verdict: 'not-applicable', saw });

class Skip extends Error {}

// What one check sends, and what it learns that others need. `facts` is shared by the checks of one run.
class Probe {
  constructor({ url, token, origin, signal, observe, frame, facts }) {
    Object.assign(this, { url, token, origin, signal, observe, frame, facts, exchanges: [] });
    this.allow = `Add ${origin} to SLIPWAY_ALLOWED_ORIGINS in .env; on another server: Access-Control-Allow-Origin: ${origin}`;
  }

  once(name, probe) {
    this.facts[name] ??= probe();
    return this.facts[name];
  }

  // One exchange, bounded in time. `until(event, record)` may end it; a time-out is an answer too: {late: true}.
  async ask({ method = 'GET', headers = {}, token = true, path, seconds = SECONDS, until, ...more } = {}) {
    const timer = new AbortController();
    const timeout = setTimeout(() => timer.abort(), seconds * 1000);
    const signal = AbortSignal.any([timer.signal, ...(this.signal ? [this.signal] : [])]);
    const all = { ...headers, ...(token && this.token ? { Authorization: `Bearer ${this.token}` } : {}) };
    let record = null;
    const observe = (made) => {
      if (!record) this.exchanges.push(made);
      record = made;
      this.observe(made);
    };
    try {
      await exchange(path ? new URL(path, this.url).href : this.url, { method, headers: all, signal, observe, label: more.label, ...more });
      const body = record.type === 'opaque' || record.type === 'opaqueredirect' ? {} : await readBody(record, (event) => Boolean(until?.(event, record)));
      return { record, response: record.response, text: body.text || '', stream: body.isStream };
    } catch (error) {
      if (this.signal?.aborted) throw error;
      return { record, late: timer.signal.aborted, failed: !timer.signal.aborted, response: record?.response, text: '' };
    } finally {
      clearTimeout(timeout);
    }
  }

  post(message, { headers = {}, ...more } = {}) {
    const body = typeof message === 'string' ? message : JSON.stringify({ jsonrpc: '2.0', ...message });
    return this.ask({ method: 'POST', body, headers: { 'Content-Type': 'application/json', Accept: ACCEPT, ...headers }, ...more });
  }

  // Why a page gets no answer at all: three probes that need ever more leave.
  diagnose() {
    return this.once('diagnosis', async () => {
      const reach = await this.ask({ mode: 'no-cors', token: false, label: 'reach' });
      if (reach.failed || reach.late) return { reach: false };
      const manual = await this.ask({ redirect: 'manual', plain: true, token: false, label: 'simple GET' });
      if (manual.record.type === 'opaqueredirect') return { reach: true, redirect: true };
      let redirect = false;
      if (manual.failed) {
        // a redirect without CORS headers looks like any other failure; but then the other spelling can be read
        const { pathname } = new URL(this.url);
        const other = await this.ask({ path: pathname.endsWith('/') ? pathname.slice(0, -1) : `${pathname}/`, plain: true, token: false, label: 'other spelling' });
        redirect = !other.failed;
      }
      if (redirect) return { reach: true, redirect };
      const simple = { method: 'POST', plain: true, token: false, body: '{}', headers: { 'Content-Type': 'text/plain' }, label: 'simple POST' };
      return { reach: true, get: !manual.failed, post: !(await this.ask(simple)).failed };
    });
  }

  // Turns an answer that the browser withheld into the finding that says why.
  async withheld(answer, what) {
    if (answer.late) return failure(`${what}: no answer in ${SECONDS} s`, 'Something holds the answer back.', 'Run ./scripts/doctor: it names the hop');
    const found = await this.diagnose();
    if (!found.reach) throw new Skip('nothing can be reached: see reach');
    if (found.redirect) throw new Skip('it redirects: see redirect');
    if (!found.get && !found.post && !(await this.greeted())) throw new Skip('no answer can be read: see allow-origin-once');
    if (!found.post && !(await this.greeted())) return failure(`${what}: withheld`, 'Answers to a POST carry no Access-Control-Allow-Origin: a proxy answers with an error page of its own (429, 502).', 'Add the CORS headers to every answer; ./scripts/doctor shows which status it is');
    return failure(`${what}: the preflight is refused`, 'The browser asked for leave (OPTIONS) and did not get it, so it never sent the request.', `Answer OPTIONS with 204, before anything asks for a token, and allow the headers that are asked for. ${this.allow}`);
  }

  async allowed(headers, what, message = { id: 1, method: 'ping', params: {} }) {
    const answer = await this.post(message, { headers });
    if (!answer.failed && !answer.late) return ok(`${answer.record.status}, the preflight passed`);
    const finding = await this.withheld(answer, what);
    const names = Object.keys(headers).join(', ');
    return { ...finding, cure: names && finding.saw.includes('preflight') ? `Access-Control-Allow-Headers must name ${names} (Mcp-Param-* cannot be listed: reflect what is asked for)` : finding.cure };
  }

  // An open session of the handshake era: its id, or why there is none.
  hello() {
    return this.once('hello', async () => {
      const answer = await this.post(initializeBody(), { label: 'initialize' });
      return { answer, session: answer.response?.headers.get('mcp-session-id') };
    });
  }

  // Whether a page can read the answer to a real request.
  async greeted() {
    const { answer } = await this.hello();
    return !answer.failed && !answer.late;
  }

  failed(id) {
    return this.facts.findings?.[id] && this.facts.findings[id] !== 'ok' && this.facts.findings[id] !== 'not-applicable';
  }

  async admitted() {
    const { answer, session } = await this.hello();
    if (answer.failed || answer.late) throw new Skip('initialize has no readable answer: see the checks above');
    if (answer.record.status === 401 || answer.record.status === 403) throw new Skip('needs a token that is accepted');
    if (answer.record.status !== 200) throw new Skip(`initialize answers ${answer.record.status}`);
    return { session, headers: { 'MCP-Protocol-Version': HANDSHAKE, ...(session ? { 'Mcp-Session-Id': session } : {}) } };
  }

  tools() {
    return this.once('tools', async () => {
      const client = new Client({ url: this.url, token: this.token, observe: this.observe });
      await client.connect('handshake', this.signal);
      const tools = await client.list('tools/list', 'tools', this.signal);
      await client.disconnect().catch(() => {});
      return tools;
    });
  }

  async countdown() {
    await this.admitted();
    const tool = (await this.tools()).find(({ name }) => name === 'countdown');
    const fields = tool?.inputSchema?.properties || {};
    if (!fields.n || !fields.seconds) throw new Skip('the server has no tool that streams and is known to be harmless');
    return { id: 7, method: 'tools/call', params: { name: 'countdown', arguments: STEPS, _meta: { progressToken: 'console' } } };
  }
}

const hasResult = (event, id) => {
  try {
    const message = JSON.parse(event.data);
    return message.id === id && ('result' in message || 'error' in message);
  } catch {
    return false;
  }
};
const challengeOf = (answer) => answer.response?.headers.get('www-authenticate') || '';

function readable(id, title, run) {
  return { id, title, async run(probe) {
    const answer = await run(probe);
    return answer.verdict ? answer : probe.withheld(answer, title);
  } };
}

async function streamed(probe, message, headers) {
  const answer = await probe.post(message, { headers, until: (event) => hasResult(event, message.id), label: 'countdown' });
  if (answer.failed && !answer.response) return probe.withheld(answer, 'POST');
  const { record } = answer;
  if (!answer.stream && !record.events.length) return record.status === 200 ? skip('answered without a stream') : failure(`HTTP ${record.status}`, 'The call was not answered.', 'Look at the Wire tab');
  const steps = record.events.filter(({ text }) => text.includes('notifications/progress'));
  if (!record.events.some(({ text }) => text.includes('"id":7'))) {
    return failure(`cut after ${(record.totalMs / 1000).toFixed(1)} s`, 'The stream ended before the result.', 'Raise the read timeout of the proxy (nginx: proxy_read_timeout 1h)');
  }
  const spread = steps.length ? steps[steps.length - 1].ms - steps[0].ms : 0;
  if (steps.length > 2 && spread < 0.4 * LASTING) {
    return failure(`${steps.length} events in one lump after ${(steps[0].ms / 1000).toFixed(1)} s`, 'Something holds the stream back until it ends, or compresses it.', 'Switch buffering and compression off for this path (nginx: proxy_buffering off; gzip_types without text/event-stream)');
  }
  if (record.headersMs > 0.6 * LASTING) return failure(`headers after ${(record.headersMs / 1000).toFixed(1)} s`, 'The head of the answer is held back.', 'Switch buffering off for this path');
  return ok(`${steps.length} events over ${(spread / 1000).toFixed(1)} s, the first after ${Math.round(steps[0]?.ms ?? 0)} ms`);
}

export const CHECKS = [
  { id: 'reach', title: 'Something answers', async run(probe) {
    const found = await probe.diagnose();
    if (found.reach) return ok('the network and TLS are fine');
    const local = isLoopback(probe.url) && probe.url.startsWith('https:');
    return failure('no answer', local ? 'Nothing listens there, or this browser does not trust the local certificate.' : 'The name, the port, or the certificate is wrong, or the server is down.',
      local ? `Open ${new URL('/healthz', probe.url)} in a tab and accept the certificate, or use the plain edge: http://localhost:8080/mcp` : 'Open the URL in a tab of its own to see what the browser says; ./scripts/doctor names the hop');
  } },
  { id: 'redirect', title: 'No redirect', async run(probe) {
    const found = await probe.diagnose();
    if (!found.reach) return skip('nothing can be reached');
    return found.redirect ? failure('it redirects', 'A redirect loses the token or the body, and browsers refuse one after a preflight.', 'Serve /mcp and /mcp/ both, without a redirect; use the final URL') : ok('none');
  } },
  { id: 'allow-origin-once', title: 'Exactly one Access-Control-Allow-Origin', async run(probe) {
    const found = await probe.diagnose();
    if (!found.reach || found.redirect) return skip('see the checks above');
    if (found.get || await probe.greeted()) return ok('an answer can be read');
    if (found.post) return ok('an answer to a POST can be read');
    return failure('answers come, but the browser withholds them', 'Access-Control-Allow-Origin is missing, names another origin, or stands there twice (a proxy and the app both add it).', `Let one hop alone write it. ${probe.allow}. ./scripts/doctor URL --origin ${probe.origin} shows the header as it is`);
  } },
  { id: 'interstitial', title: 'No page in front', async run(probe) {
    const found = await probe.diagnose();
    if (!found.reach || found.redirect) return skip('see the checks above');
    const path = '/.well-known/oauth-protected-resource/mcp';
    const plain = await probe.ask({ path, plain: true, token: false, label: 'as a browser' });
    const html = (plain.response?.headers.get('content-type') || '').includes('text/html') && plain.record.status === 200;
    if (!plain.failed && !html) return ok('none');
    const skipping = await probe.ask({ path, plain: true, token: false, headers: { 'ngrok-skip-browser-warning': '1' }, label: 'skipping the page' });
    if (skipping.failed || (skipping.response?.headers.get('content-type') || '').includes('text/html')) return skip('a GET cannot be read: see the checks above');
    return warning(html ? 'text/html' : 'a GET is withheld', 'A tunnel shows browsers a page of its own first (ngrok, free plan): GET streams and OAuth metadata fail.', 'Send the header ngrok-skip-browser-warning: 1, as this console does');
  } },
  { id: 'preflight-handshake', title: 'Preflight of the handshake era', run: (probe) => probe.allowed({ 'MCP-Protocol-Version': HANDSHAKE, 'Mcp-Session-Id': 'console-preflight' }, 'POST') },
  { id: 'preflight-resume', title: 'Preflight with Last-Event-ID', run: (probe) => probe.allowed({ 'MCP-Protocol-Version': HANDSHAKE, 'Last-Event-ID': 'console' }, 'POST') },
  { id: 'preflight-newest', title: 'Preflight of the newest era', run: (probe) => probe.allowed({ ...DISCOVERING, 'Mcp-Name': 'console' }, 'POST', DISCOVER) },
  { id: 'preflight-param', title: 'Preflight with Mcp-Param-*', run: (probe) => probe.allowed({ ...DISCOVERING, 'Mcp-Param-City': 'Oslo' }, 'POST', DISCOVER) },
  { id: 'preflight-ngrok', title: 'Preflight with ngrok-skip-browser-warning', run: (probe) => probe.allowed({ 'ngrok-skip-browser-warning': '1' }, 'POST') },
  { id: 'token', title: 'The token is accepted', async run(probe) {
    if (!probe.token) return skip('none was given');
    const { answer } = await probe.hello();
    if (answer.failed || answer.late) return skip('no answer can be read');
    const said = challengeOf(answer);
    const look = lookAt(probe.token);
    if (answer.record.status !== 401) return answer.record.status === 403 && /scope/.test(said) ? failure('403', 'The token allows no tool here.', 'scripts/mint --tools …') : ok(`accepted${look ? `, ${look}` : ''}`);
    if (look.startsWith('expired') || look.startsWith('not valid')) return failure(`401, ${look}`, 'The token is over, or not yet valid.', 'Make another: scripts/mint');
    if (!/error=/.test(said)) return failure('401, as if there were no token', 'The Authorization header does not arrive: a hop takes it away.', 'Let the proxy pass Authorization on');
    return failure('401 invalid_token', 'The server knows another secret, or the token was revoked or exchanged on the way.', 'scripts/mint --explain tells why; make another: scripts/mint');
  } },
  { id: 'host', title: 'The Host arrives', async run(probe) {
    const { answer } = await probe.hello();
    if (answer.failed || answer.late) return skip('no answer can be read');
    if (answer.record.status === 421 || (answer.record.status === 403 && /host/i.test(answer.text))) return failure(`${answer.record.status} ${answer.text.slice(0, 120)}`, 'A guard against foreign hosts refuses the Host that arrives.', 'Let the proxy keep the Host header; for a name of your own: SLIPWAY_ALLOWED_HOSTS in .env');
    return ok('not refused');
  } },
  { id: 'newest', title: `Newest era (${NEWEST})`, async run(probe) {
    await probe.admitted();
    const answer = await probe.post(DISCOVER, { headers: DISCOVERING });
    if (answer.failed || answer.late) return skip('see preflight-newest');
    if (answer.record.status === 200 && answer.text.includes('"result"')) return ok('server/discover answers');
    if (answer.response.headers.get('x-request-id')) return failure(`${answer.record.status} ${answer.text.slice(0, 100)}`, 'A Slipway speaks the newest era: the Mcp-* headers of the request do not arrive.', 'Let the proxy pass Mcp-Method, Mcp-Name and MCP-Protocol-Version on');
    return skip('the server speaks the handshake era only');
  } },
  { id: 'session-readable', title: 'The page reads Mcp-Session-Id', async run(probe) {
    const { session } = await probe.admitted();
    return session ? ok('readable') : warning('none can be read', 'It is not exposed, it got lost on the way, or the server keeps no sessions.', EXPOSE);
  } },
  readable('401-readable', 'The page reads 401 and why', async (probe) => {
    const answer = await probe.post(initializeBody(), { token: false, label: 'without token' });
    if (probe.failed('preflight-handshake')) return skip('see preflight-handshake');
    if (answer.failed && await probe.greeted()) return failure('withheld', 'Errors carry no Access-Control-Allow-Origin.', 'Add the CORS headers to every answer, errors too (nginx: add_header … always)');
    if (answer.failed || answer.late) return answer;
    if (answer.record.status !== 401) return skip(`without a token it answers ${answer.record.status}`);
    return challengeOf(answer) ? ok('status and WWW-Authenticate') : failure('no WWW-Authenticate', 'A page cannot learn where to sign in: the header is missing or not exposed.', EXPOSE);
  }),
  readable('404-readable', 'The page reads 404', async (probe) => {
    const answer = await probe.ask({ path: '/.well-known/nothing', plain: true, token: false });
    if (answer.failed && probe.failed('interstitial')) return skip('see interstitial');
    if (answer.failed && probe.failed('allow-origin-once')) return skip('see allow-origin-once');
    if (answer.failed) return failure('withheld', 'Errors carry no Access-Control-Allow-Origin.', 'Add the CORS headers to every answer, errors too (nginx: add_header … always)');
    return answer.late ? answer : answer.record.status === 404 ? ok('readable') : skip(`an unknown path answers ${answer.record.status}`);
  }),
  { id: '429-readable', title: 'The page reads 429', async run(probe) {
    const { headers } = await probe.admitted();
    for (let at = 0; at < 30; at += 1) {
      const answer = await probe.post({ id: at + 100, method: 'ping', params: {} }, { headers });
      if (answer.failed) return failure('withheld', `Call ${at + 1} of a burst was refused without CORS headers.`, 'Add the CORS headers to every answer, 429 too');
      if (answer.record?.status === 429) return answer.response.headers.get('retry-after') ? ok('429 with Retry-After') : warning('429 without Retry-After', 'It is missing or not exposed.', EXPOSE);
    }
    return skip('30 quick calls were all answered');
  } },
  { id: 'post-stream', title: 'A POST streams event by event', async run(probe) {
    const message = await probe.countdown();
    const { headers } = await probe.admitted();
    return streamed(probe, message, headers);
  } },
  { id: 'post-stream-newest', title: 'The same in the newest era', async run(probe) {
    if (probe.failed('preflight-newest') || probe.failed('newest')) return skip('see preflight-newest and newest');
    const message = await probe.countdown();
    const params = { ...message.params, _meta: { ...newestMeta(), progressToken: 'console' } };
    const finding = await streamed(probe, { ...message, params }, { 'MCP-Protocol-Version': NEWEST, 'Mcp-Method': 'tools/call', 'Mcp-Name': 'countdown' });
    return finding.saw?.startsWith('HTTP 4') ? skip('see newest') : finding;
  } },
  { id: 'get-stream', title: 'The GET stream opens at once', async run(probe) {
    const { session } = await probe.admitted();
    if (!session) return skip('without a session there is none');
    if (probe.failed('interstitial')) return skip('see interstitial');
    const headers = { 'Mcp-Session-Id': session, 'MCP-Protocol-Version': HANDSHAKE, Accept: 'text/event-stream' };
    const answer = await probe.ask({ headers, seconds: 4, until: () => true, label: 'GET stream' });
    const { record } = answer;
    if (answer.failed && !record.status) return probe.withheld(answer, 'GET');
    if (record.status === 405) return skip('the server offers none');
    if (!record.status) return failure('no headers in 4 s', 'The head of the stream is held back until an event comes.', 'Switch buffering off for this path');
    if (record.status !== 200) return skip(`it answers ${record.status}`);
    if (record.firstByteMs !== null) return ok(`headers after ${Math.round(record.headersMs)} ms, first byte after ${Math.round(record.firstByteMs)} ms`);
    if (answer.response.headers.get('x-request-id')) return failure('headers, but no byte in 4 s', 'A Slipway sends one at once: something holds it back.', 'Switch buffering off for this path');
    return ok(`headers after ${Math.round(record.headersMs)} ms, nothing sent in 4 s`);
  } },
  { id: 'resume', title: 'A cut stream is resumed', async run(probe) {
    const message = await probe.countdown();
    const { session, headers } = await probe.admitted();
    if (!session) return skip('without a session nothing is kept');
    if (probe.failed('get-stream') || probe.failed('interstitial')) return skip('see get-stream');
    let last = '';
    await probe.post({ ...message, id: 8 }, { headers, label: 'to be cut', until: (event) => { last = event.id || last; return event.data?.includes('notifications/progress'); } });
    if (!last) return skip('the server numbers no events');
    for (let at = 0; at < 3; at += 1) {
      let found = false;
      const answer = await probe.ask({ headers: { ...headers, Accept: 'text/event-stream', 'Last-Event-ID': last }, seconds: 4, label: 'resume', until: (event) => (found = hasResult(event, 8)) });
      if (found) return ok('the missed events and the result came');
      if (answer.failed && !answer.response) return skip('see preflight-resume');
    }
    return failure('the result did not come', 'Last-Event-ID does not arrive, or the server keeps no events.', 'Let the proxy pass Last-Event-ID on');
  } },
  { id: 'delete', title: 'A session can be ended', async run(probe) {
    await probe.admitted();
    const opened = await probe.post(initializeBody(), { label: 'initialize' });
    const session = opened.response?.headers.get('mcp-session-id');
    if (!session) return skip('there is no session');
    const answer = await probe.ask({ method: 'DELETE', headers: { 'Mcp-Session-Id': session } });
    if (answer.failed || answer.late) return probe.withheld(answer, 'DELETE');
    if (answer.record.status === 405) return answer.response.headers.get('x-request-id') ? failure('405', 'A Slipway lets sessions be ended: the session id does not arrive.', 'Let the proxy pass Mcp-Session-Id on') : skip('the server lets nobody end one');
    return answer.response.ok ? ok(`${answer.record.status}`) : warning(`${answer.record.status}`, 'Sessions cannot be ended.', 'Let DELETE through');
  } },
  { id: 'well-known', title: '/.well-known/* agrees with the URL', async run(probe) {
    const { pathname, origin } = new URL(probe.url);
    const path = `/.well-known/oauth-protected-resource${pathname.replace(/\/$/, '')}`;
    const answer = await probe.ask({ path, token: false });
    if (answer.failed || answer.late) return (await probe.diagnose()).get ? failure('withheld', 'The OAuth metadata carries no CORS headers.', probe.allow) : skip('no answer can be read');
    if (answer.record.status !== 200) return skip(`it answers ${answer.record.status}`);
    let named;
    try {
      const resource = JSON.parse(answer.text);
      named = [resource.resource, ...(resource.authorization_servers || [])].map((each) => new URL(each));
    } catch {
      return failure('no metadata', 'What answers is no JSON with URLs.', 'Let /.well-known/* through to the server');
    }
    const { host, protocol } = new URL(origin);
    const wrong = named.find((each, at) => (at === 0 || isLoopback(each.href)) && (each.host !== host || (protocol === 'https:' && each.protocol !== protocol)));
    return wrong ? failure(`names ${wrong.origin}`, 'OAuth clients refuse metadata that names another address.', 'Let the proxy keep the Host header; build the metadata from the public address') : ok('names this address');
  } },
  { id: 'body-limit', title: 'Bodies of 100 KB pass', async run(probe) {
    const { headers } = await probe.admitted();
    const answer = await probe.post({ id: 5, method: 'ping', params: { _meta: { pad: 'x'.repeat(100_000) } } }, { headers });
    if (answer.failed || answer.record?.status === 413) return failure(answer.failed ? 'withheld' : '413', 'Calls with larger arguments are refused.', 'Raise the limit of the proxy (nginx: client_max_body_size 4m; Slipway: SLIPWAY_MAX_BODY in .env)');
    return ok(`${answer.record?.status}`);
  } },
  { id: 'foreign-refused', title: 'A page of another origin is refused', async run(probe) {
    const found = await probe.frame(probe.url);
    if (found === null) return skip('this browser does not open http://foreign.localhost');
    return found.readable ? warning('it could call', `Pages of any origin may call, ${found.origin} too.`, 'Name the origins in SLIPWAY_ALLOWED_ORIGINS; do not use *') : ok(`${found.origin} was refused`);
  } },
];

// What a JWT says of its own life, without any check: "expired 3 min ago", "valid for 50 min", or "".
export function lookAt(token) {
  try {
    const part = token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
    const { exp, nbf } = JSON.parse(atob(part));
    const now = Date.now() / 1000;
    const minutes = (seconds) => (Math.abs(seconds) < 120 ? `${Math.round(Math.abs(seconds))} s` : `${Math.round(Math.abs(seconds) / 60)} min`);
    if (exp < now) return `expired ${minutes(now - exp)} ago`;
    if (nbf > now + 5) return `not valid for another ${minutes(nbf - now)}`;
    return exp ? `valid for ${minutes(exp - now)}` : '';
  } catch {
    return '';
  }
}

// Runs checks one after the other: they time streams. `report(check, finding, exchanges)` is called as each ends.
export async function runChecks(checks, context, report) {
  const facts = context.facts || {};
  for (const check of checks) {
    const probe = new Probe({ ...context, facts });
    let finding;
    try {
      finding = await check.run(probe);
    } catch (error) {
      if (context.signal?.aborted) return;
      finding = error instanceof Skip ? skip(error.message) : skip(`could not be judged: ${error.message}`);
    }
    (facts.findings ??= {})[check.id] = finding.verdict;
    report(check, finding, probe.exchanges);
  }
}
