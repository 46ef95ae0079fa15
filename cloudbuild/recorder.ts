/**
 * Stands for what a laptop has none of: a cluster, and Google Cloud. Every call is recorded and
 * checked; one that is not known here fails, so that the steps cannot drift from what was proved.
 */
import { parseAllDocuments } from 'yaml';

export type Call = { command: string; args: string[]; input: string };
export type Answer = { code: number; output: string };

/** What a test may break, and what a caller does when an image comes to serve a namespace. */
export type Surroundings = {
  serve: (namespace: string, image: string | undefined) => Promise<void>;
  token: () => string;
  /** Throws where no registry has the image. */
  lookUp: (image: string) => void;
  cancel: () => void;
  /** Words of a call that is to fail, such as `rollout status`. */
  fails?: string | undefined;
  /** What a scan finds. */
  vulnerabilities?: object[];
};

export type Recorder = {
  calls: Call[];
  /** The images that were rolled out, by namespace; the last one serves. */
  revisions: Map<string, string[]>;
  answer: (call: Call) => Promise<Answer>;
};

type Handler = (found: RegExpExecArray, call: Call) => Promise<string> | string;

/** A recorder; `surroundings` may be changed while it is in use. */
export function createRecorder(surroundings: Surroundings): Recorder {
  const calls: Call[] = [];
  const revisions = new Map<string, string[]>();
  const known = [...clusterCalls(revisions, surroundings), ...cloudCalls(surroundings)];

  async function answer(call: Call): Promise<Answer> {
    calls.push(call);
    const said = [call.command, ...call.args].join(' ');
    if (surroundings.fails && said.includes(surroundings.fails))
      return { code: 1, output: `error: ${surroundings.fails} fails here\n` };
    for (const [pattern, handler] of known) {
      const found = pattern.exec(said);
      if (found) return attempt(() => handler(found, call));
    }
    return { code: 64, output: `error: this call is not known here: ${said}\n` };
  }

  return { calls, revisions, answer };
}

async function attempt(act: () => Promise<string> | string): Promise<Answer> {
  try {
    return { code: 0, output: await act() };
  } catch (error) {
    return { code: 1, output: `error: ${error instanceof Error ? error.message : error}\n` };
  }
}

const DEPLOYMENT = 'deployment/passengers';

function clusterCalls(revisions: Map<string, string[]>, surroundings: Surroundings) {
  const at = (action: string) =>
    new RegExp(`^kubectl --namespace (\\S+) ${action.replace('D', DEPLOYMENT)}`);
  const serving = (namespace = '') => {
    const images = revisions.get(namespace) ?? [];
    if (images.length === 0) throw new Error(`deployments.apps "passengers" not found`);
    return images;
  };
  const calls: [RegExp, Handler][] = [
    [
      /^kubectl apply --filename=-$/,
      async (_, { input }) => {
        const { namespace, image, said } = readManifests(input);
        surroundings.lookUp(image);
        revisions.set(namespace, [...(revisions.get(namespace) ?? []), image]);
        await surroundings.serve(namespace, image);
        return said;
      },
    ],
    [
      at('rollout status D --timeout=\\d+s$'),
      ([, namespace]) =>
        `${serving(namespace) && 'deployment "passengers" successfully rolled out'}\n`,
    ],
    [
      at('rollout undo D$'),
      async ([, namespace = '']) => {
        const images = serving(namespace);
        if (images.length < 2)
          throw new Error('no rollout history found for deployment "passengers"');
        images.pop();
        await surroundings.serve(namespace, images.at(-1));
        return 'deployment.apps/passengers rolled back\n';
      },
    ],
    [
      at('logs D --all-containers --prefix --tail=\\d+$'),
      ([, namespace]) => `${serving(namespace) && 'the logs'}\n`,
    ],
    [
      at('exec D --container=passengers -- node app.ts token --sub \\w+ --expires 15m$'),
      ([, namespace]) => `${serving(namespace) && surroundings.token()}\n`,
    ],
    [
      /^kubectl api-resources --verbs=list --output=name$/,
      () => 'pods\ningresses.networking.k8s.io\nhttproutes.gateway.networking.k8s.io\n',
    ],
    [
      /^kubectl get ingresses\.networking\.k8s\.io,httproutes\.gateway\.networking\.k8s\.io --all-namespaces --output=yaml --ignore-not-found$/,
      () => 'apiVersion: v1\nitems: []\nkind: List\n',
    ],
  ];
  return calls;
}

const CLUSTER_WIDE = ['Namespace', 'ClusterRole', 'ClusterRoleBinding'];

/** Reads what is applied as a cluster would. Throws where it would refuse, or ought to. */
function readManifests(input: string) {
  const all = parseAllDocuments(input).map((document) => {
    if (document.errors.length > 0) throw document.errors[0];
    return document.toJS();
  });
  const lines = all.map(({ apiVersion, kind, metadata }) => {
    if (!apiVersion || !kind || !metadata?.name) throw new Error('an object has no kind or name');
    const placed = metadata.namespace || CLUSTER_WIDE.includes(kind);
    if (!placed) throw new Error(`${kind}/${metadata.name} has no namespace`);
    if (kind === 'Secret' || kind === 'Job') throw new Error(`there must be no ${kind} in it`);
    return `${kind.toLowerCase()}/${metadata.name} configured\n`;
  });
  const { metadata, spec } = all.find(({ kind }) => kind === 'Deployment') ?? {};
  const image: string = spec?.template.spec.containers[0].image ?? '';
  if (!/@sha256:[0-9a-f]{64}$/.test(image)) throw new Error(`${image} is named by no digest`);
  return { namespace: String(metadata.namespace), image, said: lines.join('') };
}

function cloudCalls(surroundings: Surroundings): [RegExp, Handler][] {
  const scan = 'projects/p/locations/us/scans/1';
  return [
    [/^gcloud container clusters get-credentials \S+ --location=\S+$/, () => ''],
    [/^gcloud artifacts docker images scan \S+:\S+ --format=value\(response\.scan\)$/, () => scan],
    [
      /^gcloud artifacts docker images list-vulnerabilities (\S+) --format=json$/,
      ([, given]) => {
        if (given !== scan) throw new Error(`there is no scan ${given}`);
        return JSON.stringify(surroundings.vulnerabilities ?? []);
      },
    ],
    [
      /^gcloud builds cancel [0-9a-f-]{36} --region=\S+$/,
      () => {
        surroundings.cancel();
        return '';
      },
    ],
  ];
}
