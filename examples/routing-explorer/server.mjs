// A web page that draws which experts fire for a text, per layer and token:
//
//   node examples/routing-explorer/server.mjs <checkpoint> [--port 8081] [--device auto]
//
// For dense and converted checkpoints; of converted ones the page shows the groups, too.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { basename, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { calibrate, Model, MolaeError, openDevice, Tokenizer } from 'molae';

const USAGE = 'usage: node examples/routing-explorer/server.mjs <checkpoint> [--port 8081] [--device auto]';
const { checkpoint, port, deviceName } = readArguments();

/** More would not be readable on a page. */
const MOST_TOKENS = 160;
const LONGEST_BODY = 1e5;
const FILES = {
  '/': ['page.html', 'text/html; charset=utf-8'],
  '/page.js': ['page.js', 'text/javascript'],
  '/page.css': ['page.css', 'text/css'],
};

const device = await openDevice(deviceName).catch(tell);
const [model, tokenizer] = await Promise.all([
  Model.open(checkpoint, { device }),
  Tokenizer.open(checkpoint),
]).catch(tell);

/** The tokens of a text, and for each MoE layer the experts [tokens][topK] and their weights. */
async function explore(text) {
  const ids = tokenizer.encode(text).slice(0, MOST_TOKENS);
  if (ids.length < 2) throw new Error('Give it a text of at least two tokens');
  const window = Math.min(ids.length, model.spec.contextLength);
  const layers = [];
  const visit = async ({ layer, block, routing }) => {
    const [experts, weights] = await Promise.all([routing.ids.read(), routing.weights.read()]);
    layers.push({
      layer,
      groups: block.experts.groups ?? null,
      experts: rows(experts, routing.ids.shape[1]),
      weights: rows(weights, routing.ids.shape[1]),
    });
  };
  await calibrate(model, ids, visit, { window });
  return {
    model: basename(resolve(checkpoint)),
    numExperts: model.checkpoint.spec.numExperts,
    topK: model.checkpoint.spec.topK,
    tokens: ids.map((id) => tokenizer.decode([id])),
    layers,
  };
}

function rows(values, width) {
  return Array.from({ length: values.length / width }, (_, t) => [
    ...values.subarray(t * width, (t + 1) * width),
  ]);
}

async function readText(request) {
  let body = '';
  for await (const chunk of request.setEncoding('utf8')) {
    body += chunk;
    if (body.length > LONGEST_BODY) throw new Error('The text is too long');
  }
  return body;
}

async function answer(request, response) {
  const answer = JSON.stringify(await explore(await readText(request)));
  response.writeHead(200, { 'content-type': 'application/json' }).end(answer);
}

const server = createServer(async (request, response) => {
  try {
    const file = FILES[request.url];
    if (request.method === 'POST' && request.url === '/explore') {
      await answer(request, response);
    } else if (request.method === 'GET' && file) {
      response
        .writeHead(200, { 'content-type': file[1] })
        .end(await readFile(new URL(file[0], import.meta.url)));
    } else {
      response.writeHead(404).end();
    }
  } catch (error) {
    response
      .writeHead(400, { 'content-type': 'application/json' })
      .end(JSON.stringify({ error: error.message }));
  }
});
server.on('error', (error) => stop(`Cannot listen on port ${port}: ${error.code}`, 1));
server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
process.once('SIGINT', async () => {
  server.close();
  server.closeAllConnections();
  await model.close();
  device.dispose();
});

function readArguments() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { port: { type: 'string', default: '8081' }, device: { type: 'string', default: 'auto' } },
    });
    const [checkpoint, ...others] = positionals;
    if (checkpoint === undefined || others.length > 0) throw new Error('Expected one checkpoint');
    if (!/^\d{1,5}$/.test(values.port) || Number(values.port) > 65535)
      throw new Error(`Expected a port for --port but received ${values.port}`);
    return { checkpoint, port: Number(values.port), deviceName: values.device };
  } catch (error) {
    return stop(`${error.message}\n${USAGE}`, 2);
  }
}

/** What a user can mend is told in a line; a defect keeps its stack. */
function tell(error) {
  if (!(error instanceof MolaeError)) throw error;
  stop(error.message, 1);
}

function stop(message, status) {
  console.error(message);
  process.exit(status);
}
