// The same service with Express, pg and zod as an experienced user writes it.
import express from 'express';
import { v7 as uuidv7 } from 'uuid';
import { z } from 'zod';
import { createStore } from './store.js';

const Body = z.strictObject({
  survived: z.boolean(),
  passengerClass: z.int().min(1).max(3),
  name: z.string().min(1).max(150),
  sex: z.enum(['male', 'female']),
  age: z.number().min(0).max(150),
  siblingsOrSpousesAboard: z.int().min(0).max(20),
  parentsOrChildrenAboard: z.int().min(0).max(20),
  fare: z.number().min(0),
});
const Query = z.object({
  limit: z.coerce.number().int().min(0).max(1000).default(1000),
  offset: z.coerce.number().int().min(0).default(0),
  sex: z.string().optional(),
  olderThan: z.coerce.number().optional(),
  order: z.enum(['fare', 'fare.desc']).optional(),
});

const store = createStore(process.env);
const app = express();
app.disable('x-powered-by');
app.disable('etag');
app.use(express.json());

app.get('/passengers/:uuid', async (request, response) => {
  const found = await store.read(request.params.uuid);
  if (found) response.json(found);
  else response.status(404).json({ message: 'There is no such passenger.' });
});

app.get('/passengers', async (request, response) => {
  response.json(await store.list(Query.parse(request.query)));
});

app.post('/passengers', async (request, response) => {
  response.status(201).json(await store.create(uuidv7(), Body.parse(request.body)));
});

app.put('/passengers/:uuid', async (request, response) => {
  const { created, row } = await store.replace(request.params.uuid, Body.parse(request.body));
  response.status(created ? 201 : 200).json(row);
});

app.listen(Number(process.env.PORT), '127.0.0.1');
