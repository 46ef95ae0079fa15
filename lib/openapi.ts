/** The OpenAPI 3.1 document, made from the routes of the application, and the page that shows it. */
import { readFile } from 'node:fs/promises';
import { STATUS_CODES } from 'node:http';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Column, Resource } from './columns.ts';
import { isFor, LIST, OPERATORS } from './dialect.ts';
import { CSV, JSON_TYPE, MERGE_PATCH, NDJSON, OBJECT } from './headers.ts';
import { noRow, nothingHere, problemAnswer, unavailable } from './problem.ts';
import { csvLine } from './rows.ts';
import { toText } from './sql.ts';
import { typeOf } from './types.ts';

/** What the document says of a handler. Bodies and answers are by media type. */
type Operation = {
  summary: string;
  description?: string;
  tag?: string; // the group on the page
  parameters?: string[]; // of the query and, with a capital, headers; `filter` is each column
  body?: Content | undefined;
  statuses?: number[]; // of success, the first one usual
  answer?: Content | undefined;
  example?: unknown; // of a JSON answer
  secured?: boolean; // whether AUTH decides who may
};
type Content = Record<string, object>;

const operations = new WeakMap<object, Operation>();

/** Lists a handler in the document; returns the handler. */
export function documented<H extends object>(operation: Operation, handler: H): H {
  operations.set(handler, operation);
  return handler;
}

/** The routes of the service itself, by path. */
const SERVICE: Record<string, Operation> = {
  '/': { summary: 'Name, version and paths of the service' },
  '/hello': { summary: 'Answer ok', example: { message: 'ok' } },
  '/zero': { summary: 'Answer an empty text', example: { '0': '' } },
  '/healthz': { summary: 'Whether the process answers', example: { status: 'alive' } },
  '/readyz': { summary: 'Whether requests are served', example: { status: 'ready' } },
  '/healthz/database': { summary: 'Whether the database answers', example: { status: 'ready' } },
  '/metrics': { summary: 'Metrics for Prometheus', answer: { 'text/plain': {} }, secured: true },
  '/openapi.json': { summary: 'This document' },
  '/docs': { summary: 'This document as a page', answer: { 'text/html': {} } },
  '/docs/{file}': { summary: 'A file of the page', answer: { 'text/*': {} } },
};

// --- The operations of a table ----------------------------------------------------

const PAGE = [...LIST, 'Prefer'];

/** The handlers of a table, where they differ from DEFAULTS. */
const OPERATIONS: Record<string, Operation> = {
  list: {
    summary: 'List rows',
    description: 'The rows that pass the filters, in pages; CSV and NDJSON have all of them.',
    parameters: [...PAGE, 'Range', 'Range-Unit'],
    statuses: [200, 206],
  },
  listAll: { summary: 'Stream all rows, without pages', parameters: PAGE, statuses: [200] },
  create: {
    summary: 'Create rows',
    description: 'All rows, or none; `Prefer: resolution=merge-duplicates` also replaces rows.',
    parameters: ['select', 'columns', 'on_conflict', 'Idempotency-Key', 'Prefer'],
    statuses: [201, 200],
  },
  mergeMany: {
    summary: 'Change the rows that pass the filters',
    description: 'Sets the members of the body; each element of an array has the key of its row.',
    parameters: ['filter', 'select', 'columns', 'Prefer'],
  },
  removeMany: {
    summary: 'Delete the rows that pass the filters',
    parameters: ['filter', 'select', 'Prefer'],
  },
  read: { summary: 'Read a row', statuses: [200, 304] },
  replace: { summary: 'Replace a row, or create it', statuses: [200, 201, 204] },
  merge: { summary: 'Set members of a row (JSON merge patch, RFC 7396)' },
  remove: { summary: 'Delete a row' },
};
const DEFAULTS = {
  parameters: ['If-Match', 'If-None-Match', 'Prefer'],
  statuses: [200, 204],
  secured: true,
};

/** Lists the handlers of a table in the document; returns them. */
export function documentTable<H extends object>(resource: Resource, handlers: H): H {
  const { path, key, keyMaker, settable, example } = resource;
  const values = Object.fromEntries(settable.map((name) => [name, example[name]]));
  const made = keyMaker === 'body' ? { [key]: example[key], ...values } : values;
  const schemaOf = (name: string) => reference(`schemas/${path}.${name}`);
  const arrayOf = (name: string) => ({ type: 'array', items: schemaOf(name) });
  const oneOrMany = (name: string) => ({ anyOf: [schemaOf(name), arrayOf(name)] });
  const csv = [Object.keys(made), Object.values(made).map(toText)].map(csvLine).join('');
  const lines = { [CSV]: { schema: STRING, example: csv }, [NDJSON]: { schema: STRING } };
  const list = { [JSON_TYPE]: { schema: arrayOf('Selected'), example: [example] }, ...lines };
  const selected = { [OBJECT]: { schema: schemaOf('Selected'), example } };
  const answer = { schema: oneOrMany('Selected'), example: [example] };
  const written = { [JSON_TYPE]: answer, ...lines, ...selected };
  const row = { schema: schemaOf('Row'), example };
  const part = { schema: schemaOf('Part'), example: values };
  const parts = { schema: oneOrMany('Part'), example: values };
  const examples = { one: { value: made }, many: { value: [made] } };
  const bodies: Record<string, Content> = {
    create: { [JSON_TYPE]: { schema: oneOrMany('NewRow'), examples }, [CSV]: lines[CSV] },
    replace: { [JSON_TYPE]: { schema: schemaOf('NewRow'), example: made } },
    merge: { [JSON_TYPE]: part, [MERGE_PATCH]: part },
    mergeMany: { [JSON_TYPE]: parts, [MERGE_PATCH]: parts },
  };
  const answers: Record<string, Content> = {
    list: { ...list, ...selected },
    listAll: list,
    create: written,
    mergeMany: written,
    removeMany: written,
  };
  for (const [name, handler] of Object.entries(handlers)) {
    const operation = OPERATIONS[name];
    const shown = {
      body: bodies[name],
      answer: answers[name] ?? { [JSON_TYPE]: row, [OBJECT]: row },
    };
    if (operation) documented({ tag: path, ...DEFAULTS, ...operation, ...shown }, handler);
  }
  return handlers;
}

// --- The document -----------------------------------------------------------------

const STRING = { type: 'string' };
const INTEGER = { type: 'integer', minimum: 0 };
const TREES = ['and', 'or', 'not.and', 'not.or'];
const TREE = { description: '`(column.operator.value,or(…))`, up to 10 levels' };

/** The parameters that are no filters of a column. */
const PARAMETERS = {
  select: { description: '`column`, `alias:column`, `column::type`, `count()`, `column.avg()`' },
  order: { description: '`column.desc.nullslast,column`' },
  limit: { description: 'Most rows of the answer', schema: INTEGER },
  offset: { description: 'Rows to skip', schema: INTEGER },
  after: { description: 'The cursor of `Link: rel="next"`' },
  ...Object.fromEntries(TREES.map((name) => [name, TREE])),
  columns: { description: 'Names between commas; other members of the body are ignored' },
  on_conflict: { description: 'The key or unique columns, for `Prefer: resolution=…-duplicates`' },
  Prefer: { description: 'Preferences between commas', example: 'return=representation' },
  Range: { description: '`0-9`: the first and the last row' },
  'Range-Unit': { description: '`items`, the unit of Range' },
  'If-Match': { description: 'The ETag that the row must have' },
  'If-None-Match': { description: 'The ETag that is known; `*` for a row that must not exist' },
  'Idempotency-Key': { description: 'A repeated request with the same key creates nothing more' },
};

/** The headers of a table's answers. */
const HEADERS = {
  ETag: 'Of one row: its version',
  Location: 'With 201: the path of the row',
  'Content-Range': '`0-9/887`: the first and the last row, the number of all if it was counted',
  Link: 'The next page of a list as a relative reference with `rel="next"`',
  'Preference-Applied': 'The preferences that were applied',
};

/** The groups on the page after those of the tables. */
const GROUPS = {
  service: 'Name, health, metrics and this document',
  PostgREST: "The tables for PostgREST's clients: a write answers no rows unless asked",
  'other paths': 'The tables under the paths of an earlier service',
};

/** RFC 9457's members, then PostgREST's. */
const PROBLEM = z.looseObject({
  type: z.string(),
  title: z.string(),
  status: z.int().min(400).max(599),
  detail: z.string(),
  code: z.string(),
  message: z.string(),
  details: z.string().nullable(),
  hint: z.string().nullable(),
  errors: z.array(z.looseObject({ pointer: z.string(), detail: z.string() })).optional(),
});

function reference(to: string) {
  return { $ref: `#/components/${to}` };
}

/** `secured`: whether a method needs a token. */
type About = { title: string; version: string; base: string; secured: (method: string) => boolean };
type Route = { method: string; path: string; handler: unknown };

/** The document of all routes whose handlers are documented. */
export function openapi(routes: Route[], resources: Resource[], about: About) {
  const { title, version, base, secured } = about;
  const paths: Record<string, Record<string, object>> = {};
  for (const { method, path, handler } of routes) {
    const at = path.slice(base.length).replace(/:(\w+)/g, '{$1}') || '/';
    const operation = operations.get(handler as object) ?? (method === 'GET' && SERVICE[at]);
    if (!operation || !path.startsWith(base)) continue;
    const security = operation.secured && secured(method) ? [{ bearer: [] }] : [];
    const resource = resources.find((one) => one.path === operation.tag);
    const described = { security, ...describe(method, at, operation, resource) };
    paths[at] = { ...paths[at], [method.toLowerCase()]: described };
  }
  const description = 'HEAD answers wherever GET does; OPTIONS names the service and the methods.';
  const parameters = mapValues(PARAMETERS, (parameter, name) => {
    const place = /^[A-Z]/.test(name) ? 'header' : 'query';
    return { in: place, name, schema: STRING, ...parameter };
  });
  const responses = mapValues({ Problem: noRow(), Failure: unavailable() }, (problem) => {
    const example = JSON.parse(problemAnswer(problem).body);
    const content = { schema: reference('schemas/Problem'), example };
    return {
      description: 'A problem; 503 has `Retry-After`',
      content: { 'application/problem+json': content },
    };
  });
  const bearer = { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' };
  const groups = {
    ...Object.fromEntries(resources.map(({ path }) => [path, `Rows of ${path}`])),
    ...GROUPS,
  };
  return {
    openapi: '3.1.1',
    info: { title, version, license: { name: 'MIT', identifier: 'MIT' }, description },
    servers: [{ url: base || '/' }],
    tags: Object.entries(groups).map(([name, text]) => ({ name, description: text })),
    paths,
    components: {
      schemas: Object.assign({ Problem: jsonSchema(PROBLEM) }, ...resources.map(describeRows)),
      parameters: Object.assign(parameters, ...resources.map(describeFilters)),
      headers: mapValues(HEADERS, (text) => ({ description: text, schema: STRING })),
      responses,
      ...(secured('POST') && { securitySchemes: { bearer } }),
    },
  };
}

function describe(method: string, path: string, operation: Operation, resource?: Resource) {
  const { summary, description = `${summary}.`, tag = 'service', parameters = [] } = operation;
  const { body, statuses = [200], example, answer } = operation;
  const [first = '', ...names] = path.match(/\w+/g) ?? ['root'];
  const group = first === 'rest' ? 'PostgREST' : !resource || first === tag ? tag : 'other paths';
  const named = resource ? HEADERS : {};
  const headers = mapValues(named, (_, name) => reference(`headers/${name}`));
  const responses = statuses.map((status) => {
    const content = answer ?? { [JSON_TYPE]: { schema: {}, example } };
    const shown = status === 204 || status === 304 ? {} : { content };
    return [status, { description: STATUS_CODES[status], headers, ...shown }];
  });
  const failures = { '4XX': reference('responses/Problem'), '5XX': reference('responses/Failure') };
  return {
    summary,
    description,
    tags: [group],
    operationId: [method.toLowerCase(), first, ...names].join('_'),
    parameters: parametersOf(path, parameters, resource),
    ...(body && { requestBody: { required: true, content: body } }),
    responses: { ...Object.fromEntries(responses), ...failures },
  };
}

function parametersOf(path: string, names: string[], resource?: Resource) {
  const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name = '']) => {
    const example = name === 'key' && resource ? toText(resource.example[resource.key]) : undefined;
    return { in: 'path', name, required: true, schema: STRING, example };
  });
  const filters = resource?.names.map((column) => `${resource.path}.column.${column}`) ?? [];
  const others = names.flatMap((name) => (name === 'filter' ? [...filters, ...TREES] : name));
  return [...inPath, ...others.map((name) => reference(`parameters/${name}`))];
}

function jsonSchema(type: z.ZodType) {
  const { $schema, ...schema } = z.toJSONSchema(type, { io: 'input' });
  return schema;
}

/** JSON Schemas of a row as answered, of one with the members that `select` chose, and of bodies. */
function describeRows({ path, key, keyMaker, columns, row, part }: Resource) {
  const nullable = (column: Column) => (column.nullable ? column.schema.nullable() : column.schema);
  const answered = z.object(mapValues(columns, nullable));
  const { required = [], ...made } = jsonSchema(row);
  const needed = keyMaker === 'body' ? [key, ...required] : required;
  return {
    [`${path}.Row`]: jsonSchema(answered),
    [`${path}.Selected`]: jsonSchema(answered.partial()),
    [`${path}.NewRow`]: { ...made, required: needed },
    [`${path}.Part`]: jsonSchema(part),
  };
}

function describeFilters(resource: Resource) {
  const filters = resource.names.map((name) => {
    const operators = [...OPERATORS.keys()].filter((one) => isFor(typeOf(resource, name), one));
    const pattern = `^(not\\.)?(${operators.join('|')})(\\(\\w+\\))?\\.`;
    const examples = [`eq.${toText(resource.example[name])}`];
    const description = `Is ${resource.columns[name]?.expects}`;
    const schema = { ...STRING, pattern, examples };
    return [`${resource.path}.column.${name}`, { in: 'query', name, description, schema }];
  });
  return Object.fromEntries(filters);
}

function mapValues<T, U>(values: Record<string, T>, map: (value: T, name: string) => U) {
  return Object.fromEntries(Object.entries(values).map(([name, one]) => [name, map(one, name)]));
}

// --- The page ---------------------------------------------------------------------

const START = "SwaggerUIBundle({ url: 'openapi.json', dom_id: 'main', validatorUrl: null });\n";
export const PAGE_HEADERS = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
    "img-src data:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
};

/** Swagger UI on the document; it loads nothing from another host. */
export function page(title: string, base: string): string {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><base href="${base}/">
    <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
    <title>${title}</title><link rel="stylesheet" href="docs/swagger-ui.css"><main></main>
    <script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></html>`;
}

/** A file of the page. Throws 404 for any other name. */
export async function pageFile(name: string) {
  const type = `text/${name.endsWith('css') ? 'css' : 'javascript'}; charset=utf-8`;
  const cached = { 'Cache-Control': 'public, max-age=86400', 'X-Content-Type-Options': 'nosniff' };
  const headers = { 'Content-Type': type, ...cached };
  if (name === 'start.js') return { body: START, headers };
  if (name !== 'swagger-ui.css' && name !== 'swagger-ui-bundle.js') throw nothingHere();
  const path = fileURLToPath(import.meta.resolve(`swagger-ui-dist/${name}`));
  return { body: await readFile(path, 'utf8'), headers };
}
