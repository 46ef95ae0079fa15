/** What is served: kinds of column, and a resource made of them. */
import { z } from 'zod';
import { StartError } from './problem.ts';
import { literal, quote } from './sql.ts';

/** Values by column name, as JSON has them. */
export type Row = Record<string, unknown>;

/** What a kind takes besides its own arguments. */
export type Options = {
  csv?: string; // other names of the column in a CSV header, between commas
  default?: unknown; // the value of a body without this member; a function gives SQL
  nullable?: boolean; // whether null is a value, and the default
  generated?: () => string; // SQL of the value; a body must not have the member
  unique?: boolean; // whether a second row with the same value is refused with 409
  example?: unknown; // in /docs
};

/** A condition in SQL on a quoted column name. */
type Check = (name: string) => string;

/** One column, as a kind makes it. */
export type Column = Options & {
  type: string; // as PostgreSQL's format_type() prints it
  expects: string; // completes «must be …»
  schema: z.ZodType; // validates a value in a body
  check: Check; // the same rule for the table
  owner?: RegExp; // what the `sub` of a token must match; only the owner column has it
};

/** One table and the path that serves it. */
type Declaration = {
  path: string;
  table: string;
  key: string; // a UUID column besides `columns`; the service makes the key that a body lacks
  columns: Record<string, Column>;
  sample?: string; // a CSV file whose rows a new embedded database gets
};

export type Resource = ReturnType<typeof resource>;

/**
 * Completes a declaration: `names` (key first), `settable` and `required` ones, an example, and the
 * validators of a whole row and of a part. Throws StartError for a name that cannot be a column.
 */
export function resource(declaration: Declaration) {
  const { key, columns } = declaration;
  const keyColumn = uuid({ example: '0192f0c1-2f3a-7bcd-8123-456789abcdef' });
  const [row, part]: [Schemas, Schemas] = [{}, {}];
  const example: Row = { [key]: keyColumn.example };
  for (const [name, column] of Object.entries(columns)) {
    example[name] = column.example;
    if (column.generated || column.owner) continue;
    const { schema, nullable, default: initial } = column;
    const valid = nullable ? schema.nullable() : schema;
    const absent = initial === undefined && nullable ? null : initial;
    part[name] = valid.optional();
    row[name] = absent === undefined ? valid : valid.default(absent);
    if (typeof initial === 'function') row[name] = schema.optional();
  }
  const names = Object.keys(example);
  const refused = Object.keys(columns).find((name) => name === key || RESERVED.test(name));
  if (refused !== undefined) throw new StartError(`"${refused}" cannot be the name of a column`);
  const settable = Object.keys(row);
  const required = settable.filter((name) => !row[name]?.safeParse(undefined).success);
  const owner = names.find((name) => columns[name]?.owner);
  const strict = (schemas: Schemas) =>
    z.strictObject({ [key]: keyColumn.schema.optional(), ...schemas }, 'must be an object');
  const validators = { row: strict(row), part: strict(part) };
  const notNull = new Set<string>(); // columns without nulls in the table; ensureTable() fills it
  return { ...declaration, ...validators, names, settable, required, owner, example, notNull };
}
type Schemas = Record<string, z.ZodType>;

/** Names of parameters of a query, which no column can have. */
const RESERVED = /^(|select|order|limit|offset|after|columns|on_conflict|(not\.)?(and|or)|not)$/;

/** How JSON has a value: `time` is text in the form of to_json(), `json` is JSON already. */
export type JsonKind = 'boolean' | 'number' | 'text' | 'time' | 'json';

/** The kind of a PostgreSQL type, by its name. */
export function kindOf(type: string): JsonKind {
  if (/^bool/.test(type)) return 'boolean';
  if (/^(small|big)?int(?!erval)|^(numeric|decimal|real|float|double)/.test(type)) return 'number';
  if (/^json/.test(type)) return 'json';
  return /^(date|time)/.test(type) ? 'time' : 'text';
}

/** The PostgreSQL type of a column; the key has none in `columns`. */
export function typeOf({ columns }: Pick<Resource, 'columns'>, name: string): string {
  return columns[name]?.type ?? 'uuid';
}

// --- Kinds ------------------------------------------------------------------------

/** The answer of a schema to an invalid value. */
type Message = { error: (issue: { input?: unknown }) => string };
type Make<T = unknown> = (message: Message) => z.ZodType<T>;

/** A column whose schema answers `expects` for every invalid value. */
function column(type: string, expects: string, schema: Make, check: Check, options: Options) {
  const error: Message['error'] = ({ input }) =>
    input === undefined ? `is missing; it must be ${expects}` : `must be ${expects}`;
  return { type, expects, schema: schema({ error }), check, ...options };
}

export function boolean(options?: Options): Column {
  const check: Check = (name) => `${name} in (true, false)`;
  return column('boolean', 'true or false', z.boolean, check, { example: true, ...options });
}

/** A 32-bit integer within bounds. */
export function integer(least: number, most: number, options?: Options): Column {
  const expects = `a whole number from ${least} to ${most}`;
  const schema: Make = (message) => z.int(message).min(least, message).max(most, message);
  return column('integer', expects, schema, between(least, most), { example: least, ...options });
}

/** A double within bounds, neither NaN nor infinite. */
export function number(least: number, most: number, options?: Options): Column {
  const expects = `a number from ${least}${most < Number.MAX_VALUE ? ` to ${most}` : ''}`;
  const schema: Make = (message) => z.number(message).min(least, message).max(most, message);
  const defaults = { example: least, ...options };
  return column('double precision', expects, schema, between(least, most), defaults);
}

/** Text of 1 to `most` code points; blanks around it are removed. */
export function text(most: number, options?: Options): Column {
  const expects = `text of 1 to ${most} characters besides blanks around it`;
  const fits = (value: string) => value !== '' && isStorable(value) && [...value].length <= most;
  const bounds = { minLength: 1, maxLength: most, pattern: NOT_BLANK }; // the JSON schema ignores refine()
  const schema: Make = (message) => z.string(message).trim().refine(fits, message).meta(bounds);
  const check: Check = (name) => `${name} <> '' and ${name} = btrim(${name}, E'${BLANKS}')`;
  const defaults = { example: 'some text', ...options };
  return column(`character varying(${most})`, expects, schema, check, defaults);
}

/** One of the given values. */
export function oneOf(values: string[], options?: Options): Column {
  const type = `character varying(${Math.max(...values.map((value) => value.length))})`;
  const check: Check = (name) => `${name} in (${values.map(literal).join(', ')})`;
  const schema: Make = (message) => z.enum(values, message);
  return column(type, values.join(' or '), schema, check, { example: values[0], ...options });
}

/** A UUID in any form that PostgreSQL accepts. */
export function uuid(options?: Options): Column {
  const schema: Make = (message) =>
    z.string(message).refine(toUuid, message).transform(toUuid).meta({ format: 'uuid' });
  const example = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
  return column('uuid', 'a UUID', schema, isKnown, { example, ...options });
}

/** Bounds, written as values of the column are. */
type Span = Options & { from?: string; to?: string };

/** A day, as 2026-01-31. */
export function date(options?: Span): Column {
  const bounds = { from: '0001-01-01', to: '9999-12-31' };
  const defaults = { ...bounds, example: '2026-01-31', ...options };
  return span('date', 'a day, as 2026-01-31,', z.iso.date, defaults);
}

/** A moment with its UTC offset, as 2026-01-31T12:00:00Z. */
export function timestamp(options?: Span): Column {
  const bounds = { from: '0001-01-01T00:00:00Z', to: '9999-12-31T23:59:59Z' };
  const defaults = { ...bounds, example: '2026-01-31T12:00:00+00:00', ...options };
  const schema = (message: Message) => z.iso.datetime({ offset: true, ...message });
  return span('timestamp with time zone', 'a moment, as 2026-01-31T12:00:00Z,', schema, defaults);
}

/** PostgreSQL rejects UTC offsets of 16 h or more and over-long fractions of a second. */
function span(type: string, what: string, schema: Make<string>, options: Span): Column {
  const { from = '', to = '', ...others } = options;
  const isWithin = (at: number) => at >= Date.parse(from) && at <= Date.parse(to);
  const isAccepted = (text: string) => text.length <= 40 && !/[+-](1[6-9]|2\d):\d\d$/.test(text);
  const fits = (text: string) => isWithin(Date.parse(text)) && isAccepted(text);
  const make: Make = (message) => schema(message).refine(fits, message);
  return column(type, `${what} from ${from} to ${to}`, make, between(from, to), others);
}

/** JSON of a zod schema; the table checks only the outermost type. */
export function jsonb(schema: z.ZodType, example: unknown, options?: Options): Column {
  const type = String(z.toJSONSchema(schema, { io: 'input' }).type);
  const typed: Check = (name) => `jsonb_typeof(${name}) = ${literal(type)}`;
  const check = /^(array|object|string|number|boolean)$/.test(type) ? typed : isKnown;
  const make: Make = (message) => schema.refine((value) => isStorable(value), message);
  return column('jsonb', 'JSON of its schema', make, check, { example, ...options });
}

/** The `sub` of the token that made the row; never in a body, never changed. */
export function owner(pattern: RegExp, options?: Options): Column {
  const base = column('text', `as ${pattern.source}`, z.string, isKnown, options ?? {});
  return { ...base, owner: pattern };
}

/** For `default` and `generated`: the time of the statement. */
export function now(): string {
  return 'now()';
}

function isKnown(name: string): string {
  return `${name} = ${name}`;
}

function between(least: unknown, most: unknown): Check {
  return (name) => `${name} between ${literal(least)} and ${literal(most)}`;
}

/** PostgreSQL stores neither NUL, nor a lone surrogate, nor an infinity or deep nesting in jsonb. */
function isStorable(value: unknown, depth = 0): boolean {
  if (typeof value === 'string') return !value.includes('\0') && value.isWellFormed();
  if (typeof value !== 'object') return typeof value !== 'number' || Number.isFinite(value);
  const inside = Object.entries(value ?? {}).flat();
  return depth < 100 && inside.every((one) => isStorable(one, depth + 1));
}

/** Text without NUL that is more than blanks, for JSON Schema. */
const NOT_BLANK = '^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$';

/** What String.prototype.trim() removes, for PostgreSQL's E''. */
const BLANKS =
  ' \\t\\n\\u000b\\f\\r\\u00a0\\u1680\\u2000\\u2001\\u2002\\u2003\\u2004\\u2005\\u2006\\u2007' +
  '\\u2008\\u2009\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff';

/** The canonical form of any UUID that PostgreSQL accepts (its manual, 8.12), else undefined. */
export function toUuid(value: string): string | undefined {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) return value;
  const bare = /^\{.*\}$/.test(value) ? value.slice(1, -1) : value;
  if (!/^(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}$/i.test(bare)) return undefined;
  const hex = bare.replaceAll('-', '').toLowerCase();
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

/** The column in `create table` and `alter table`. */
export function define(name: string, column: Column): string {
  const { type, nullable, check, unique, generated, default: initial = generated } = column;
  const given = kindOf(type) === 'json' ? JSON.stringify(initial) : initial;
  const value = typeof initial === 'function' ? initial() : literal(given);
  const preset = initial === undefined ? '' : ` default ${value}`;
  const rest = `${nullable ? '' : ' not null'}${preset}${unique ? ' unique' : ''}`;
  return `${quote(name)} ${type}${rest} check (${check(quote(name))})`;
}
