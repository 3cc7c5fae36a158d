// Event streams: the bytes of a text/event-stream body become events, at whatever boundaries they arrive.

const LONGEST = 16 * 1024 * 1024;

export class EventStreamParser {
  #decoder = new TextDecoder(); // keeps the first half of a UTF-8 sequence until the second arrives
  #rest = '';
  #raw = [];
  #data = [];
  #fields = {};
  #started = false;

  // Returns what is complete: events {raw, data, event, id} and comments {raw, comment}.
  push(bytes) {
    let text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    if (!this.#started && text) {
      this.#started = true;
      text = text.replace(/^\uFEFF/, '');
    }
    if (text.length > LONGEST) throw new Error('one event is longer than 16 MB');
    // a carriage return at the end may be the first half of CRLF
    const held = text.endsWith('\r');
    const lines = (held ? text.slice(0, -1) : text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + (held ? '\r' : '');
    return lines.map((line) => this.#line(line)).filter(Boolean);
  }

  #line(line) {
    if (line === '') {
      const [raw, data, fields] = [this.#raw.join('\n'), this.#data, this.#fields];
      [this.#raw, this.#data, this.#fields] = [[], [], {}];
      return data.length || fields.id !== undefined ? { raw, data: data.join('\n'), ...fields } : null;
    }
    if (line.startsWith(':')) return { raw: line, comment: line.slice(1).trim() };
    this.#raw.push(line);
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') this.#data.push(value);
    else if (name === 'event' || name === 'id' || name === 'retry') this.#fields[name] = value;
    return null;
  }
}
