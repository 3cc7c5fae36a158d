// A form from a JSON schema, and the value that was typed into it.

import { el, newId, pretty } from './dom.js';

const DEEPEST = 6;

// Follows a reference within the schema, and takes a nullable union for what it holds besides null.
export function resolve(schema, root, hops = 0) {
  if (!schema || typeof schema !== 'object' || hops > 20) return {};
  if (typeof schema.$ref === 'string' && schema.$ref.startsWith('#')) {
    const found = schema.$ref.slice(1).split('/').filter(Boolean)
      .reduce((part, key) => part?.[decodeURIComponent(key).replace(/~1/g, '/').replace(/~0/g, '~')], root);
    const { $ref, ...beside } = schema;
    return resolve({ ...found, ...beside }, root, hops + 1);
  }
  const union = schema.anyOf || schema.oneOf;
  if (Array.isArray(union)) {
    const real = union.filter((part) => part?.type !== 'null');
    if (real.length === 1) {
      const { anyOf, oneOf, ...beside } = schema;
      return { ...resolve(real[0], root, hops + 1), ...beside };
    }
    return { ...schema, type: undefined };
  }
  if (Array.isArray(schema.allOf) && schema.allOf.length === 1) {
    const { allOf, ...beside } = schema;
    return resolve({ ...allOf[0], ...beside }, root, hops + 1);
  }
  if (Array.isArray(schema.type)) {
    const real = schema.type.filter((type) => type !== 'null');
    return { ...schema, type: real.length === 1 ? real[0] : undefined };
  }
  return schema;
}

class Invalid extends Error {
  constructor(name, message, node) {
    super(`${name}: ${message}`);
    this.node = node;
  }
}

// Returns {node, read}: read() gives the value, undefined where nothing was typed, and throws where that may not be.
export function field(given, { root = given, name = 'arguments', required = true, depth = 0 } = {}) {
  const schema = resolve(given, root);
  const kind = kindOf(schema, depth);
  const part = KINDS[kind](schema, { root, name, required, depth });
  if (kind === 'object' || kind === 'array') return part;
  const id = newId('field');
  part.input.id = id;
  part.input.required = required && kind !== 'boolean';
  const hint = hintOf(schema);
  if (hint) part.input.setAttribute('aria-describedby', `${id}-hint`);
  const node = el('div', { class: 'field' },
    el('label', { for: id, htmlFor: id }, name, required ? el('span', { class: 'required', title: 'required' }, ' *') : ''),
    part.input, hint && el('p', { class: 'hint', id: `${id}-hint` }, hint));
  const read = () => {
    const value = part.read();
    if (value === undefined && required) throw new Invalid(name, 'is required', part.input);
    if (value !== undefined && !part.input.checkValidity()) throw new Invalid(name, part.input.validationMessage, part.input);
    return value;
  };
  return { node, read };
}

function kindOf(schema, depth) {
  if ('const' in schema) return 'constant';
  if (Array.isArray(schema.enum)) return 'choice';
  if (schema.type === 'boolean') return 'boolean';
  if (schema.type === 'number' || schema.type === 'integer') return 'number';
  if (schema.type === 'string') return 'text';
  if (depth < DEEPEST && schema.type === 'array' && schema.items && !Array.isArray(schema.items)) return 'array';
  if (depth < DEEPEST && (schema.type === 'object' || schema.properties) && Object.keys(schema.properties || {}).length) return 'object';
  return 'json';
}

function hintOf(schema) {
  const bounds = [
    schema.minimum !== undefined && `at least ${schema.minimum}`, schema.maximum !== undefined && `at most ${schema.maximum}`,
    schema.minLength > 1 && `at least ${schema.minLength} characters`, schema.maxLength !== undefined && `at most ${schema.maxLength} characters`,
    schema.format && `format: ${schema.format}`, schema.pattern && `pattern: ${schema.pattern}`,
  ].filter(Boolean);
  return [schema.description, bounds.join(', ')].filter(Boolean).map(String).join(' · ').slice(0, 600);
}

const KINDS = {
  constant: (schema) => ({ input: el('input', { value: pretty(schema.const), readOnly: true }), read: () => schema.const }),

  choice(schema, { required }) {
    const input = el('select', {},
      required && 'default' in schema === false ? [] : [el('option', { value: '' }, '—')],
      schema.enum.slice(0, 500).map((value, at) => el('option', { value: String(at + 1) }, typeof value === 'string' ? value : pretty(value))));
    if ('default' in schema) input.value = String(schema.enum.indexOf(schema.default) + 1 || '');
    return { input, read: () => (input.value ? schema.enum[Number(input.value) - 1] : undefined) };
  },

  boolean(schema, { required }) {
    const input = el('select', {}, required ? [] : [el('option', { value: '' }, '—')],
      el('option', { value: 'false' }, 'false'), el('option', { value: 'true' }, 'true'));
    if (typeof schema.default === 'boolean') input.value = String(schema.default);
    return { input, read: () => (input.value ? input.value === 'true' : undefined) };
  },

  number(schema) {
    const input = el('input', { type: 'number', inputMode: 'decimal', step: schema.type === 'integer' ? '1' : 'any' });
    if (schema.minimum !== undefined) input.min = schema.minimum;
    if (schema.maximum !== undefined) input.max = schema.maximum;
    if (schema.default !== undefined && schema.default !== null) input.value = schema.default;
    return { input, read: () => (input.value === '' ? undefined : Number(input.value)) };
  },

  text(schema) {
    const long = (schema.maxLength ?? 0) > 300;
    const type = { email: 'email', uri: 'url', date: 'date' }[schema.format] || 'text';
    const input = long ? el('textarea', { rows: 4 }) : el('input', { type, autocomplete: 'off', spellcheck: false });
    if (schema.maxLength !== undefined) input.maxLength = Math.max(0, schema.maxLength);
    if (schema.default !== undefined && schema.default !== null) input.value = String(schema.default);
    // an empty text is a value where the schema allows none shorter
    return { input, read: () => (input.value === '' && (schema.minLength ?? 1) > 0 ? undefined : input.value) };
  },

  json(schema) {
    const input = el('textarea', { rows: 3, placeholder: 'JSON', spellcheck: false, class: 'code' });
    if (schema.default !== undefined) input.value = pretty(schema.default);
    const read = () => {
      if (input.value.trim() === '') return undefined;
      try {
        return JSON.parse(input.value);
      } catch (error) {
        throw new Invalid('JSON', error.message, input);
      }
    };
    return { input, read };
  },

  object(schema, { root, name, required, depth }) {
    const wanted = new Set(Array.isArray(schema.required) ? schema.required : []);
    const parts = Object.entries(schema.properties).slice(0, 200).map(([key, part]) => (
      [key, field(part, { root, name: key, required: wanted.has(key), depth: depth + 1 })]));
    const inside = el('div', { class: 'inside' }, parts.map(([, part]) => part.node));
    const given = el('input', { type: 'checkbox', checked: required });
    inside.hidden = !required;
    given.addEventListener('change', () => { inside.hidden = !given.checked; });
    const read = () => {
      if (!required && !given.checked) return undefined;
      return Object.fromEntries(parts.map(([key, part]) => [key, part.read()]).filter(([, value]) => value !== undefined));
    };
    if (depth === 0) return { node: inside, read };
    const legend = required ? el('legend', {}, name, el('span', { class: 'required' }, ' *')) : el('legend', {}, el('label', {}, given, ` ${name}`));
    return { node: el('fieldset', {}, legend, schema.description && el('p', { class: 'hint' }, String(schema.description).slice(0, 600)), inside), read };
  },

  array(schema, { root, name, required, depth }) {
    const parts = [];
    const list = el('div', { class: 'inside' });
    const add = () => {
      if (parts.length >= 100) return;
      const part = field(schema.items, { root, name: `${name} ${parts.length + 1}`, required: true, depth: depth + 1 });
      const row = el('div', { class: 'row' }, part.node, el('button', {
        type: 'button', class: 'quiet', 'aria-label': `Remove ${name} ${parts.length + 1}`,
        onclick: () => { parts.splice(parts.indexOf(part), 1); row.remove(); },
      }, '−'));
      parts.push(part);
      list.append(row);
    };
    for (let at = 0; at < Math.min(schema.minItems ?? 0, 20); at += 1) add();
    const node = el('fieldset', {}, el('legend', {}, name, required && el('span', { class: 'required' }, ' *')),
      schema.description && el('p', { class: 'hint' }, String(schema.description).slice(0, 600)), list,
      el('button', { type: 'button', class: 'quiet', onclick: add }, `+ ${name}`));
    return { node, read: () => (parts.length || required ? parts.map((part) => part.read()) : undefined) };
  },
};

// The form of a tool: fields, or the arguments as JSON. Returns {node, read}.
export function argumentsForm(schema) {
  const fields = field({ type: 'object', ...schema }, { root: schema, name: 'arguments' });
  const empty = !Object.keys(schema?.properties || {}).length;
  const raw = el('textarea', { rows: 8, class: 'code', spellcheck: false, 'aria-label': 'Arguments as JSON', value: '{}' });
  const toggle = el('input', { type: 'checkbox' });
  const holder = el('div', {}, empty ? el('p', { class: 'hint' }, 'It takes no arguments.') : fields.node, raw);
  raw.hidden = true;
  toggle.addEventListener('change', () => {
    raw.hidden = !toggle.checked;
    holder.firstElementChild.hidden = toggle.checked;
    if (!toggle.checked) return;
    try {
      raw.value = pretty(empty ? {} : fields.read());
    } catch {
      // half a form is still a beginning
    }
  });
  const read = () => {
    if (!toggle.checked) return empty ? {} : fields.read();
    let value;
    try {
      value = JSON.parse(raw.value);
    } catch (error) {
      throw new Invalid('arguments', error.message, raw);
    }
    if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new Invalid('arguments', 'must be a JSON object', raw);
    return value;
  };
  return { node: el('div', {}, holder, el('label', { class: 'check' }, toggle, ' raw JSON')), read };
}
