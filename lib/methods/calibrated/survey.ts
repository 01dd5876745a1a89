import { namingTensor } from '../../checkpoint/non-finite-tensor.ts';
import { calibrate } from '../../model/calibration.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import type { KeptInputs } from '../../model/kept-inputs.ts';
import type { Model } from '../../model/model.ts';
import { checkWindow, defaultWindow, splitWindows } from '../../model/windows.ts';
import type { MethodRequest } from '../method.ts';

/** What is looked at before anything is converted. */
export interface SurveyRequest extends Pick<MethodRequest, 'model' | 'calibration' | 'window' | 'signal'> {
  /** Called after each layer of the pass. */
  readonly onLayer?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
  /** Keeps what reaches the layers. */
  readonly kept?: KeptInputs | undefined;
}

/** Spectra settle long before factors do: this share of the text is enough to compare them. */
const SURVEYED = 1 / 4;

/** The windows that a survey looks at, from all over the text, and the others. */
export function surveyedPart(
  model: Model,
  { calibration, window = defaultWindow(model) }: Pick<SurveyRequest, 'calibration' | 'window'>,
): { readonly surveyed: readonly number[]; readonly rest: readonly number[] } {
  checkWindow(model, window);
  const { sample, rest } = splitWindows(calibration, calibration.length * SURVEYED, window);
  return { surveyed: sample, rest };
}

/** Looks at every MoE layer with a part of the calibration text, before any of them is converted. */
export async function survey(
  request: SurveyRequest,
  look: (layer: CalibrationLayer) => Promise<void>,
): Promise<void> {
  const { model, window, signal, onLayer, kept } = request;
  let done = 0;
  await calibrate(
    model,
    surveyedPart(model, request).surveyed,
    async (layer) => {
      await kept?.keep(layer);
      await namingTensor(model.checkpoint, layer.layer, () => look(layer));
      done++;
      onLayer?.({ done, total: model.checkpoint.spec.layers.length });
      return undefined;
    },
    { window, signal },
  );
}
