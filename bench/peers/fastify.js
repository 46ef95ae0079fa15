// The same service with Fastify and pg as an experienced user writes it: schemas that validate and
// serialise, statements prepared by name, a pool, no log line per request.
import Fastify from 'fastify';
import { v7 as uuidv7 } from 'uuid';
import { COLUMNS, createStore } from './store.js';

const properties = {
  survived: { type: 'boolean' },
  passengerClass: { type: 'integer', minimum: 1, maximum: 3 },
  name: { type: 'string', minLength: 1, maxLength: 150 },
  sex: { enum: ['male', 'female'], type: 'string' },
  age: { type: 'number', minimum: 0, maximum: 150 },
  siblingsOrSpousesAboard: { type: 'integer', minimum: 0, maximum: 20 },
  parentsOrChildrenAboard: { type: 'integer', minimum: 0, maximum: 20 },
  fare: { type: 'number', minimum: 0 },
};
const body = { type: 'object', properties, required: COLUMNS, additionalProperties: false };
const row = { type: 'object', properties: { uuid: { type: 'string' }, ...properties } };
const params = { type: 'object', properties: { uuid: { type: 'string', format: 'uuid' } } };
const querystring = {
  type: 'object',
  properties: {
    limit: { type: 'integer', minimum: 0, maximum: 1000, default: 1000 },
    offset: { type: 'integer', minimum: 0, default: 0 },
    sex: { type: 'string' },
    olderThan: { type: 'number' },
    order: { enum: ['fare', 'fare.desc'] },
  },
};

const store = createStore(process.env);
const app = Fastify();

const one = { params, response: { 200: row, 201: row } };
app.get('/passengers/:uuid', { schema: one }, async (request, reply) => {
  const found = await store.read(request.params.uuid);
  return found ?? reply.code(404).send({ message: 'There is no such passenger.' });
});

const many = { querystring, response: { 200: { type: 'array', items: row } } };
app.get('/passengers', { schema: many }, (request) => store.list(request.query));

app.post('/passengers', { schema: { body, response: { 201: row } } }, async (request, reply) => {
  reply.code(201);
  return store.create(uuidv7(), request.body);
});

app.put('/passengers/:uuid', { schema: { ...one, body } }, async (request, reply) => {
  const { created, row } = await store.replace(request.params.uuid, request.body);
  reply.code(created ? 201 : 200);
  return row;
});

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
