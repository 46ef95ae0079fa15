/** The OpenAPI 3.1 document, made from the routes of the application, and the page that shows it. */
import { readFile } from 'node:fs/promises';
import { STATUS_CODES } from 'node:http';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { type Resource, typeOf } from './columns.ts';
import { isFor, OPERATORS } from './dialect.ts';
import { CSV, JSON_TYPE, MERGE_PATCH, NDJSON, OBJECT } from './headers.ts';
import { csvLine } from './rows.ts';
import { toText } from './sql.ts';

/** What the document says of a route. */
export type Operation = {
  /** A few words. */
  summary: string;
  /** The group of the route on the page. */
  tag?: string;
  /** Names of query parameters and, with a capital, of headers; `filter` is one for each column. */
  parameters?: string[];
  /** The request body by media type. */
  body?: Content;
  /** Statuses of success, the first one usual. */
  statuses?: number[];
  /** The answer by media type, or an example of a JSON answer. */
  answer?: Content | { example: unknown };
  /** Whether AUTH decides who may; true for the routes of a table. */
  secured?: boolean;
};
type Content = Record<string, object>;

/** A route as Hono lists it in `app.routes`. */
type Route = { method: string; path: string; handler: unknown };

const operations = new WeakMap<object, Operation>();

/** Lists a handler in the document; returns the handler. */
export function documented<H extends object>(operation: Operation, handler: H): H {
  operations.set(handler, operation);
  return handler;
}

/** The routes of the service itself, by path. */
const SERVICE: Record<string, Operation> = {
  '/hello': { summary: 'Answer ok', answer: { example: { message: 'ok' } } },
  '/zero': { summary: 'Answer an empty text', answer: { example: { '0': '' } } },
  '/healthz': { summary: 'Whether the process answers', answer: { example: { status: 'alive' } } },
  '/readyz': { summary: 'Whether the database answers', answer: { example: { status: 'ready' } } },
  '/metrics': { summary: 'Metrics for Prometheus', answer: { 'text/plain': {} }, secured: true },
  '/openapi.json': { summary: 'This document', answer: { [JSON_TYPE]: {} } },
  '/docs': { summary: 'This document as a page', answer: { 'text/html': {} } },
  '/docs/{file}': { summary: 'A file of the page', answer: { 'text/*': {} } },
};

// --- The operations of a table ----------------------------------------------------

const PAGE = ['filter', 'select', 'order', 'limit', 'offset', 'after'];

/** Lists the handlers of a table in the document. */
export function documentTable(resource: Resource, handlers: Record<string, object>): void {
  const schema = schemasOf(resource);
  const all: Record<string, Operation> = {
    list: {
      summary: 'List rows',
      parameters: [...PAGE, 'Range', 'Prefer'],
      statuses: [200, 206],
      answer: schema.rows,
    },
    listAll: { summary: 'Stream all rows', parameters: [...PAGE, 'Prefer'], answer: schema.all },
    create: {
      summary: 'Create rows',
      parameters: ['select', 'columns', 'on_conflict', 'Idempotency-Key', 'Prefer'],
      body: schema.created,
      statuses: [201],
      answer: schema.written,
    },
    mergeMany: {
      summary: 'Change the rows that pass the filters',
      parameters: ['filter', 'select', 'columns', 'Prefer'],
      body: schema.parts,
      statuses: [200, 204],
      answer: schema.written,
    },
    removeMany: {
      summary: 'Delete the rows that pass the filters',
      parameters: ['filter', 'select', 'Prefer'],
      statuses: [200, 204],
      answer: schema.written,
    },
    read: {
      summary: 'Read a row',
      parameters: ['If-None-Match', 'Prefer'],
      statuses: [200, 304],
      answer: schema.row,
    },
    replace: {
      summary: 'Replace a row, or create it',
      parameters: ['If-Match', 'If-None-Match', 'Prefer'],
      body: schema.whole,
      statuses: [200, 201, 204],
      answer: schema.row,
    },
    merge: {
      summary: 'Change a row',
      parameters: ['If-Match', 'Prefer'],
      body: schema.part,
      statuses: [200, 204],
      answer: schema.row,
    },
    remove: {
      summary: 'Delete a row',
      parameters: ['If-Match', 'Prefer'],
      statuses: [200, 204],
      answer: schema.row,
    },
  };
  for (const [name, handler] of Object.entries(handlers)) {
    const operation = all[name];
    if (operation) documented({ tag: resource.path, secured: true, ...operation }, handler);
  }
}

/** Bodies and answers of a table by media type. */
function schemasOf(resource: Resource) {
  const { path, key, settable, example } = resource;
  const values = Object.fromEntries(settable.map((name) => [name, example[name]]));
  const [row, whole, part] = ['Row', 'NewRow', 'Part'].map((name) =>
    reference(`schemas/${path}.${name}`),
  );
  const arrayOf = (items?: object) => ({ type: 'array', items });
  const oneOrMany = (schema?: object) => ({ anyOf: [schema, arrayOf(schema)] });
  const csv = [Object.keys(values), Object.values(values).map(toText)].map(csvLine).join('\n');
  const rows = { schema: arrayOf(row), example: [example] };
  const object = { schema: row, example };
  const lines = { [CSV]: { schema: STRING, example: csv }, [NDJSON]: { schema: STRING } };
  const examples = { one: { value: values }, many: { value: [values] } };
  const onePart = { schema: part, example: values };
  return {
    rows: { [JSON_TYPE]: rows, [OBJECT]: object, ...lines },
    all: { [JSON_TYPE]: rows, ...lines },
    row: { [JSON_TYPE]: object, [OBJECT]: object },
    written: { [JSON_TYPE]: { ...rows, schema: oneOrMany(row) }, [OBJECT]: object },
    created: { [JSON_TYPE]: { schema: oneOrMany(whole), examples }, [CSV]: lines[CSV] },
    whole: { [JSON_TYPE]: { schema: whole, example: { [key]: example[key], ...values } } },
    part: { [JSON_TYPE]: onePart, [MERGE_PATCH]: onePart },
    parts: {
      [JSON_TYPE]: { schema: oneOrMany(part), example: values },
      [MERGE_PATCH]: { schema: oneOrMany(part), example: values },
    },
  } satisfies Record<string, Content>;
}

// --- The document -----------------------------------------------------------------

const STRING = { type: 'string' };
const INTEGER = { type: 'integer', minimum: 0 };
const TREE = '`(column.operator.value,or(…))`, up to 10 levels';
const TREES = ['and', 'or', 'not.and', 'not.or'];

/** The parameters that are no filters of a column. */
const PARAMETERS: Record<string, { description: string; schema?: object; example?: unknown }> = {
  select: { description: '`column`, `alias:column`, `column::type`, `count()`, `column.avg()`' },
  order: { description: '`column.desc.nullslast,column`' },
  limit: { description: 'Most rows of the answer', schema: INTEGER },
  offset: { description: 'Rows to skip', schema: INTEGER },
  after: { description: 'The cursor of `Link: rel="next"`' },
  ...Object.fromEntries(TREES.map((name) => [name, { description: TREE }])),
  columns: { description: 'Names between commas; other members of the body are ignored' },
  on_conflict: { description: 'The key, for `Prefer: resolution=…-duplicates`' },
  Prefer: {
    description: '`return=minimal`: no rows',
    example: 'return=representation, count=exact, max-affected=1',
  },
  Range: { description: '`0-9`, as limit and offset' },
  'If-Match': { description: 'The ETag that the row must have' },
  'If-None-Match': { description: 'The ETag that is known; `*` for a row that must not exist' },
  'Idempotency-Key': { description: 'A repeated request with the same key creates nothing more' },
};

type Described = {
  title: string;
  version: string;
  base: string;
  /** Whether a method needs a token. */
  secured: (method: string) => boolean;
};

function reference(to: string) {
  return { $ref: `#/components/${to}` };
}

/** The document of all routes whose handlers are documented. */
export function openapi(routes: Route[], resources: Resource[], about: Described) {
  const paths: Record<string, Record<string, object>> = {};
  for (const { method, path, handler } of routes) {
    const at = path.slice(about.base.length).replace(/:(\w+)/g, '{$1}') || '/';
    const operation = operations.get(handler as object) ?? (method === 'GET' && SERVICE[at]);
    if (!operation || !path.startsWith(about.base)) continue;
    paths[at] = {
      ...paths[at],
      [method.toLowerCase()]: describe(method, at, operation, about, resources),
    };
  }
  const content = { 'application/problem+json': { schema: reference('schemas/Problem') } };
  const bearer = { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' };
  const { title, version } = about;
  const description = 'HEAD answers wherever GET does; OPTIONS names the service and the methods.';
  return {
    openapi: '3.1.1',
    info: { title, version, license: { name: 'MIT', identifier: 'MIT' }, description },
    servers: [{ url: about.base || '/' }],
    tags: tagsOf(resources),
    paths,
    components: {
      schemas: Object.assign({ Problem: PROBLEM }, ...resources.map(describeRows)),
      parameters: Object.assign(describeParameters(), ...resources.map(describeColumns)),
      responses: { Problem: { description: 'A problem (RFC 9457)', content } },
      ...(about.secured('POST') && { securitySchemes: { bearer } }),
    },
  };
}

const POSTGREST = 'PostgREST';
const OTHER = 'service';

function tagsOf(resources: Resource[]) {
  return [
    ...resources.map(({ path }) => ({ name: path, description: 'The rows of this table' })),
    { name: POSTGREST, description: "The same with the defaults of PostgREST's clients" },
    { name: OTHER, description: 'The service itself' },
  ];
}

function describe(
  method: string,
  path: string,
  operation: Operation,
  { secured }: Described,
  resources: Resource[],
) {
  const { summary, tag = OTHER, parameters = [], body, statuses = [200], answer } = operation;
  const resource = resources.find((one) => one.path === tag);
  const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name ?? '');
  const example = answer && 'example' in answer ? answer.example : undefined;
  const content = example === undefined ? answer : { [JSON_TYPE]: { schema: {}, example } };
  const responses = statuses.map((status) => {
    const empty = status === 204 || status === 304;
    const shown = !empty && content ? { content } : {};
    return [String(status), { description: STATUS_CODES[status], ...shown }];
  });
  const failures = { '4XX': reference('responses/Problem'), '5XX': reference('responses/Problem') };
  return {
    summary,
    tags: [path.startsWith('/rest/v1/') ? POSTGREST : tag],
    security: operation.secured && secured(method) ? [{ bearer: [] }] : [],
    operationId: [method.toLowerCase(), ...(path.match(/\w+/g) ?? [])].join('_'),
    parameters: [
      ...inPath.map((name) => parameterInPath(name, resource)),
      ...parameters.flatMap((name) => referencesTo(name, resource)),
    ],
    ...(body && { requestBody: { required: true, content: body } }),
    responses: { ...Object.fromEntries(responses), ...failures },
  };
}

function parameterInPath(name: string, resource?: Resource) {
  if (name === 'key' && resource) return reference(`parameters/${resource.path}.key`);
  return { in: 'path', name, required: true, schema: STRING };
}

function referencesTo(name: string, resource?: Resource) {
  if (name !== 'filter' || !resource) return [reference(`parameters/${name}`)];
  const filters = resource.names.map((column) => `${resource.path}.column.${column}`);
  return [...filters, ...TREES].map((one) => reference(`parameters/${one}`));
}

const PROBLEM = jsonSchema(
  z.object({
    type: z.string(),
    title: z.string(),
    status: z.int().min(400).max(599),
    detail: z.string(),
    code: z.string(),
    message: z.string(),
    details: z.string().nullable(),
    hint: z.string().nullable(),
    errors: z.array(z.object({ pointer: z.string(), detail: z.string() })).optional(),
  }),
);

function jsonSchema(type: z.ZodType): object {
  const { $schema, ...schema } = z.toJSONSchema(type, { io: 'input' });
  return schema;
}

/** JSON Schemas of what the validators take and of what is answered. */
function describeRows({ path, key, columns, row, part }: Resource) {
  const nullable = Object.entries(columns).map(([name, { schema }]) => [name, schema.nullable()]);
  const answered = z.object({ [key]: z.string(), ...Object.fromEntries(nullable) });
  return {
    [`${path}.Row`]: jsonSchema(answered),
    [`${path}.NewRow`]: jsonSchema(row),
    [`${path}.Part`]: jsonSchema(part),
  };
}

function describeParameters() {
  const all = Object.entries(PARAMETERS).map(([name, parameter]) => {
    const place = /^[A-Z]/.test(name) ? 'header' : 'query';
    return [name, { in: place, name, schema: STRING, ...parameter }];
  });
  return Object.fromEntries(all);
}

function describeColumns(resource: Resource) {
  const { path, key, names, columns, example } = resource;
  const filters = names.map((name) => {
    const { expects = 'a UUID' } = columns[name] ?? {};
    const operators = [...OPERATORS.keys()].filter((one) => isFor(typeOf(resource, name), one));
    const pattern = `^(not\\.)?(${operators.join('|')})(\\(\\w+\\))?\\.`;
    const schema = { ...STRING, pattern, examples: [`eq.${toText(example[name])}`] };
    const description = `Is ${expects}`;
    return [`${path}.column.${name}`, { in: 'query', name, description, schema }];
  });
  const row = { in: 'path', name: 'key', required: true, schema: STRING, description: key };
  return { ...Object.fromEntries(filters), [`${path}.key`]: { ...row, example: example[key] } };
}

// --- The page ---------------------------------------------------------------------

const START = "SwaggerUIBundle({ url: 'openapi.json', dom_id: 'main', validatorUrl: null });\n";
export const PAGE_HEADERS = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
};

/** Swagger UI on the document; it loads nothing from another host. */
export function page(title: string): string {
  return `<!doctype html><html lang="en"><meta charset="utf-8">
    <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
    <title>${title}</title><link rel="stylesheet" href="docs/swagger-ui.css"><main></main>
    <script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></html>`;
}

/** A file of the page; undefined for any other name. */
export async function pageFile(name: string) {
  const type = `text/${name.endsWith('css') ? 'css' : 'javascript'}; charset=utf-8`;
  const cached = { 'Cache-Control': 'public, max-age=86400', 'X-Content-Type-Options': 'nosniff' };
  const headers = { 'Content-Type': type, ...cached };
  if (name === 'start.js') return { body: START, headers };
  if (name !== 'swagger-ui.css' && name !== 'swagger-ui-bundle.js') return undefined;
  const path = fileURLToPath(import.meta.resolve(`swagger-ui-dist/${name}`));
  return { body: await readFile(path, 'utf8'), headers };
}
