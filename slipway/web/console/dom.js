// Builds elements. Text from servers only ever becomes text: nothing here parses HTML.

// el('button', {class: 'quiet', onclick: f, 'aria-label': 'Close'}, 'text', child, …)
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes('-') && name !== 'list') node[name === 'class' ? 'className' : name] = value;
    else node.setAttribute(name === 'className' ? 'class' : name, value === true ? '' : value);
  }
  if (properties.class) node.className = properties.class;
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

export const pretty = (value) => {
  try {
    return JSON.stringify(value, null, 2) ?? String(value);
  } catch {
    return String(value);
  }
};

let ids = 0;
export const newId = (prefix) => `${prefix}-${(ids += 1)}`;

export async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    const area = el('textarea', { class: 'copying', value: text, 'aria-label': 'Text to copy' });
    button.after(area);
    area.select();
    area.addEventListener('blur', () => area.remove(), { once: true });
    button.textContent = 'Press Ctrl+C';
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}
