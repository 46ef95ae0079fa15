/** SQL text with bound values: what is put into the template is sent beside the text, never in it. */

/** SQL in which NUL marks the place of each value; no SQL text can contain NUL itself. */
export class Sql {
  text: string;
  values: unknown[];
  constructor(text: string, values: unknown[] = []) {
    this.text = text;
    this.values = values;
  }
}

/** The only way to write SQL: binds each interpolation as a value, unless it is Sql itself. */
export function sql(texts: TemplateStringsArray, ...parts: unknown[]): Sql {
  const made = new Sql(texts[0] ?? '');
  for (const [at, part] of parts.entries()) {
    made.text += (part instanceof Sql ? part.text : '\0') + texts[at + 1];
    if (part instanceof Sql) made.values.push(...part.values);
    else made.values.push(part);
  }
  return made;
}

/** The parts with constant text between them, and `before` them if there are any. */
export function join(parts: Sql[], between = ', ', before = ''): Sql {
  const text = parts.map((part) => part.text).join(between);
  const values = parts.flatMap((part) => part.values);
  return new Sql(parts.length > 0 ? before + text : '', values);
}

/** A constant of the program as SQL; never text of a caller. */
export function raw(text: string): Sql {
  return new Sql(text);
}

/** A quoted identifier. */
export function identifier(name: string): Sql {
  return new Sql(quote(name));
}

/** Quoted identifiers with commas between them, each with `prefix` in front. */
export function identifiers(names: string[], prefix = ''): Sql {
  return new Sql(names.map((name) => prefix + quote(name)).join(', '));
}

/** `where a and b`, or nothing without a test. */
export function where(tests: Sql[]): Sql {
  return join(tests, ' and ', 'where ');
}

/** The text with PostgreSQL's numbered parameters, `$1`, `$2`, … */
export function numbered(text: string): string {
  let at = 0;
  return text.replace(/\0/g, () => `$${++at}`);
}

export function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** A constant of the declaration for DDL, which takes no bound values. */
export function literal(value: unknown): string {
  return `'${toText(value).replaceAll("'", "''")}'`;
}

/** A JSON value as the text that PostgreSQL reads. */
export function toText(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** A PostgreSQL array literal of JSON values; undefined is null, an object is its JSON. */
export function arrayLiteral(items: unknown[]): string {
  return `{${items.map(toItem).join(',')}}`;
}

function toItem(item: unknown): string {
  if (item === null || item === undefined) return 'NULL';
  if (typeof item === 'number' || typeof item === 'boolean') return String(item);
  return `"${toText(item).replace(/["\\]/g, '\\$&')}"`;
}
