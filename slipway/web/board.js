// The board: reads the lab's event stream, and keeps a row for each seat up to date in its place.
// Every text that arrives may be an attacker's: it becomes text, never markup.

const KEY = 'slipway-board-key';
const QUIET = 40_000; // ms without a byte after which a connection counts as dead: a comment comes every 15 s
const LONGEST_WAIT = 15_000; // ms
const SIGNS = { free: '○', joined: '◐', connected: '●', revoked: '✕' };

const byId = (id) => document.getElementById(id);
const rows = new Map(); // seat → {data, line, parts}
let checkpoints = [];
let projector = false;
let endsAt = 0;
let ahead = 0; // seconds that the server's clock is ahead of ours
let door = [];

// ---- the address: the key leaves it at once, and is kept for this tab alone

function takeAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.get('key')) sessionStorage.setItem(KEY, given.get('key'));
  projector = given.get('view') === 'projector';
  history.replaceState(null, '', location.pathname + (projector ? '#view=projector' : ''));
  document.documentElement.classList.toggle('projector', projector);
  byId('view').textContent = projector ? 'Instructor view' : 'Projector view';
}

// ---- the stream

let run = 0;
let hangUp = () => {};

async function follow() {
  const mine = ++run;
  hangUp();
  clear();
  for (let failures = 0; mine === run; failures += 1) {
    const connection = new AbortController();
    hangUp = () => connection.abort();
    let alarm = setTimeout(hangUp, QUIET);
    const answer = await fetch(`/admin/lab/events${projector ? '?view=projector' : ''}`, {
      headers: { authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ''}` }, cache: 'no-store', signal: connection.signal,
    }).catch(() => null);
    if (answer && [401, 403, 404].includes(answer.status)) {
      clearTimeout(alarm);
      const told = await refusal(answer);
      return mine === run ? say(told) : undefined;
    }
    const reader = answer?.ok ? answer.body.getReader() : null;
    const parser = new EventStreamParser();
    while (reader) {
      const { value, done } = await reader.read().catch(() => ({ done: true }));
      if (mine !== run) return undefined;
      if (done) break;
      clearTimeout(alarm);
      alarm = setTimeout(() => connection.abort(), QUIET);
      for (const { event, data } of parser.push(value)) {
        if (event === 'end') {
          clearTimeout(alarm);
          connection.abort();
          return over();
        }
        if (Object.hasOwn(takers, event ?? '')) {
          takers[event](JSON.parse(data));
          failures = 0;
        }
      }
    }
    clearTimeout(alarm);
    if (mine !== run) return undefined;
    say('The server is away, trying again …');
    // with a jitter: the pages that wait for a server must not come back in one moment
    const wait = Math.min(LONGEST_WAIT, 500 * 2 ** failures) * (0.5 + Math.random() / 2);
    await new Promise((resolve) => { setTimeout(resolve, wait); });
  }
  return undefined;
}

async function refusal(answer) {
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 404 && told.cure) return `${told.error} ${told.cure}`;
  return 'This page may not look at the board: its link is old, or not whole. Open the newest one that scripts/lab printed.';
}

const takers = {
  lab(lab) {
    ahead = lab.now - Date.now() / 1000;
    endsAt = lab.ends_at;
    say('');
    put(byId('title'), lab.title);
    put(byId('address'), lab.join_url);
    byId('join').hidden = !lab.join_url;
    put(byId('code'), lab.code ? `code ${lab.code}` : '');
    if (lab.qr && byId('qr').src !== lab.qr) byId('qr').src = lab.qr;
    byId('qr').hidden = !lab.qr;
    byId('left').hidden = false;
    byId('locked').hidden = !lab.locked;
    byId('table').hidden = false;
    if (JSON.stringify(checkpoints) !== JSON.stringify(lab.checkpoints)) setCheckpoints(lab.checkpoints);
    const known = new Set(lab.seats.map((row) => row.seat));
    for (const [seat, row] of rows) {
      if (known.has(seat)) continue;
      row.line.remove();
      rows.delete(seat);
    }
    takers.door(lab.door);
    takers.budget(lab.budget);
    takers.seats(lab.seats);
    tick();
  },
  seats(changed) {
    const told = changed.map(showRow).filter(Boolean);
    if (told.length) put(byId('said'), told.slice(0, 4).join(' ') + (told.length > 4 ? ` And ${told.length - 4} more.` : ''));
    addUp();
  },
  door(refusals) {
    door = refusals;
    byId('door').hidden = !door.length;
    byId('door-list').replaceChildren(...door.map((one) => {
      const when = made('span', '');
      when.className = 'ago';
      const what = made('strong', `${one.what}${one.count > 1 ? ` (${one.count} times)` : ''} `);
      return made('li', '', what, when, made('p', one.cure));
    }));
    tick();
  },
  budget(budget) {
    byId('budget').hidden = budget.plan === 'none';
    bar('requests', budget.requests, budget.requests_most, count);
    bar('bytes', budget.bytes, budget.bytes_most, bytes);
    bar('minute', budget.per_minute, budget.per_minute_most, count);
    const slowed = budget.slowed ? ` Each seat may send ${count(budget.slowed)} messages a minute now.` : '';
    put(byId('warning'), budget.warning + slowed);
    byId('warning').hidden = !(budget.warning || slowed);
    const plan = `Plan ${budget.plan}.`;
    put(byId('projected'), budget.projected ? `${plan} At this rate ${count(budget.projected)} requests when the lab ends.` : plan);
  },
};

// ---- what is shown

const count = (number) => Number(number).toLocaleString('en', { maximumFractionDigits: 0 });

const duration = (ms) => (ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`);

function bytes(number) {
  const unit = number >= 1e9 ? [1e9, 'GB'] : number >= 1e6 ? [1e6, 'MB'] : [1e3, 'kB'];
  return `${(number / unit[0]).toLocaleString('en', { maximumFractionDigits: 1 })} ${unit[1]}`;
}

function bar(id, used, most, written) {
  const progress = byId(id);
  progress.hidden = !most;
  progress.value = most ? Math.min(1, used / most) : 0;
  progress.classList.toggle('near', Boolean(most) && used >= 0.8 * most);
  put(byId(`${id}-told`), most ? `${written(used)} of ${written(most)}` : written(used));
}

function put(node, text) {
  const wanted = String(text ?? '');
  if (node.textContent !== wanted) node.textContent = wanted;
}

function made(tag, text, ...children) {
  const node = document.createElement(tag);
  node.append(String(text), ...children);
  return node;
}

function say(text) {
  put(byId('link'), text);
  byId('link').hidden = !text;
  document.body.classList.toggle('away', Boolean(text));
}

function over() {
  say('The lab is over.');
  endsAt = 0;
  tick();
}

function clear() {
  // nothing of one view may stay in the other: the projector shows no names
  rows.clear();
  byId('seats').replaceChildren();
  for (const id of ['table', 'left', 'join', 'budget', 'steps', 'door', 'cures', 'nobody']) byId(id).hidden = true;
  for (const id of ['counts', 'said']) put(byId(id), '');
  byId('door-list').replaceChildren();
  [checkpoints, door] = [[], []];
  say('Connecting …');
}

function setCheckpoints(list) {
  checkpoints = list;
  byId('steps').hidden = !list.length;
  byId('step-list').replaceChildren(...list.map((one) => {
    const share = document.createElement('progress');
    share.setAttribute('aria-label', one.title);
    return made('li', '', made('span', one.title), share, made('strong', '0'));
  }));
  for (const row of rows.values()) row.parts.ticks.replaceChildren();
}

function newRow(seat) {
  const line = byId('row').content.firstElementChild.cloneNode(true);
  line.dataset.seat = seat;
  const parts = Object.fromEntries([...line.querySelectorAll('[class]')].map((part) => [part.classList.item(part.classList.length - 1), part]));
  const after = [...byId('seats').children].find((other) => Number(other.dataset.seat) > seat);
  byId('seats').insertBefore(line, after ?? null);
  const row = { data: {}, line, parts };
  rows.set(seat, row);
  return row;
}

// Shows one seat. Returns what is to be said of it: only whether it is stuck is worth an interruption.
function showRow(data) {
  const row = rows.get(data.seat) ?? newRow(data.seat);
  const { line, parts } = row;
  const was = row.data.stuck ?? '';
  row.data = data;
  put(parts.seat, data.seat);
  put(parts.sign, SIGNS[data.state] ?? '');
  put(parts.word, data.state);
  // the projector's stream holds none of these; a page that forgot to ask for it shows none either
  put(parts.name, projector ? '' : data.name);
  put(parts.program, projector ? '' : data.client);
  put(parts.payload, projector ? '' : data.payload);
  parts.name.title = parts.name.textContent;
  parts.program.title = parts.program.textContent;
  put(parts.era, data.era);
  put(parts.call, data.last ? data.last_call : '');
  put(parts.ago, data.last ? ago(data.last) : '');
  put(parts.calls, data.calls ? count(data.calls) : '');
  put(parts.errors, data.errors ? count(data.errors) : '');
  put(parts.p95, data.p95 ? duration(data.p95) : '');
  put(parts.why, data.stuck);
  put(parts.cure, data.stuck ? data.cure : '');
  line.dataset.state = data.state;
  line.classList.toggle('is-stuck', Boolean(data.stuck));
  showTicks(row);
  if (data.stuck === was) return '';
  return data.stuck ? `Seat ${data.seat}: ${data.stuck}.` : `Seat ${data.seat} goes on.`;
}

function showTicks({ data, parts }) {
  while (parts.ticks.children.length < checkpoints.length) parts.ticks.append(document.createElement('i'));
  const reached = checkpoints.filter((one) => data.checkpoints.includes(one.id));
  checkpoints.forEach((one, at) => {
    parts.ticks.children[at].classList.toggle('done', reached.includes(one));
  });
  const names = reached.map((one) => one.title).join(', ');
  parts.ticks.setAttribute('aria-label', `${reached.length} of ${checkpoints.length} checkpoints${names ? `: ${names}` : ''}`);
  parts.ticks.title = names;
  put(parts.sum, checkpoints.length ? `${reached.length}/${checkpoints.length}` : '');
}

function addUp() {
  const all = [...rows.values()].map((row) => row.data);
  const stuck = all.filter((row) => row.stuck);
  const has = (state) => all.filter((row) => row.state === state).length;
  put(byId('counts'), `● ${has('connected')} connected · ◐ ${has('joined')} joined · ○ ${has('free')} free · ▲ ${stuck.length} stuck`);
  document.title = `${stuck.length ? `(${stuck.length}) ` : ''}${byId('title').textContent}`;
  byId('nobody').hidden = !byId('only').checked || stuck.length > 0;
  const taken = all.filter((row) => row.state !== 'free').length;
  checkpoints.forEach((one, at) => {
    const item = byId('step-list').children[at];
    const sum = all.filter((row) => row.checkpoints.includes(one.id)).length;
    item.querySelector('progress').value = taken ? sum / taken : 0;
    put(item.querySelector('strong'), sum);
  });
  showCures(stuck);
}

// One sentence helps all who are stuck at the same: that is what the projector shows.
function showCures(stuck) {
  const groups = new Map();
  for (const row of stuck) {
    const same = JSON.stringify([row.stuck, row.cure]);
    groups.set(same, [...(groups.get(same) ?? []), row]);
  }
  const told = [...groups.values()].map((group) => [
    `${group.length > 1 ? 'Seats' : 'Seat'} ${group.map((row) => row.seat).join(', ')}: ${group[0].stuck}`, group[0].cure,
  ]);
  const list = byId('cure-list');
  byId('cures').hidden = !told.length;
  if (list.dataset.told === JSON.stringify(told)) return;
  list.dataset.told = JSON.stringify(told);
  list.replaceChildren(...told.map(([who, cure]) => made('li', '', made('strong', who), made('p', cure))));
}

// ---- what goes on by itself

const now = () => Date.now() / 1000 + ahead;

function ago(time) {
  const seconds = Math.max(0, now() - time);
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : `${Math.floor(seconds / 3600)} h ago`;
}

function tick() {
  const left = Math.max(0, Math.ceil(endsAt - now()));
  const [hours, minutes] = [Math.floor(left / 3600), Math.floor((left % 3600) / 60)];
  const exact = `${minutes}:${String(left % 60).padStart(2, '0')}`;
  put(byId('time'), !endsAt ? 'over' : left >= 600 ? `${hours ? `${hours} h ` : ''}${minutes} min left` : `${exact} left`);
  byId('time').classList.toggle('soon', left < 600);
  for (const { data, parts } of rows.values()) if (data.last) put(parts.ago, ago(data.last));
  door.forEach((one, at) => put(byId('door-list').children[at].querySelector('.ago'), ago(one.time)));
}

byId('view').addEventListener('click', () => { location.hash = projector ? '' : 'view=projector'; });
byId('only').addEventListener('change', (event) => {
  byId('table').classList.toggle('only-stuck', event.target.checked);
  addUp();
});

function start() {
  takeAddress();
  follow().catch((error) => {
    say('This page met an error. Load it again.');
    throw error;
  });
}

addEventListener('hashchange', start);
setInterval(tick, 1000);
start();
