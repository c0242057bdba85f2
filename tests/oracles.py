"""The attribution methods written naively from their formulas: one instance at a time, dense matrices, float64.

Only for models of a few hundred parameters. Nothing here uses the library's gradients, curvature or methods.
"""

import copy

import numpy as np
import torch


def at(task, params):
    """A copy of the model with the given parameters, in float64, without dropout."""
    model = copy.deepcopy(task.model).double().eval()
    model.load_state_dict({**model.state_dict(), **params})
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def vector(tensors, like):
    """Gradients, of which some may be missing, as one long numpy vector."""
    return (
        torch.cat([torch.zeros_like(p).ravel() if t is None else t.ravel() for t, p in zip(tensors, like, strict=True)])
        .detach()
        .numpy()
    )


def instance(instances, i):
    inputs, targets = instances
    targets = targets[i : i + 1]
    return inputs[i : i + 1].double(), targets.double() if targets.is_floating_point() else targets


def gradient(task, model, instances, i):
    """Of the loss of one instance, [P]."""
    inputs, target = instance(instances, i)
    loss = task.loss(model(inputs), target)[0]
    return vector(torch.autograd.grad(loss, trained(model), allow_unused=True), trained(model))


def gradients(task, params, instances, rows):
    model = at(task, params)
    return np.stack([gradient(task, model, instances, i) for i in rows])


def jacobian(task, params, i, model=None):
    """Of the outputs of one training instance in the parameters, [C, P]; `model`: the one at these, if there is one."""
    model = model or at(task, params)
    weights, outputs = trained(model), model(instance(task.train, i)[0])[0]
    return np.stack(
        [vector(torch.autograd.grad(o, weights, retain_graph=True, allow_unused=True), weights) for o in outputs]
    )


def output_hessian(task, params, i, model=None):
    """Second derivative of the loss of one training instance in its outputs, [C, C]."""
    inputs, target = instance(task.train, i)
    outputs = (model or at(task, params))(inputs).detach()
    return torch.autograd.functional.hessian(lambda o: task.loss(o, target)[0], outputs)[0, :, 0].numpy()


def gauss_newton(task, params, rows):
    """Of the mean loss, [P, P]."""
    total, model = 0.0, at(task, params)
    for i in rows:
        J = jacobian(task, params, i, model)
        total = total + J.T @ output_hessian(task, params, i, model) @ J
    return total / len(rows)


def hessian(task, params, rows):
    """Of the mean loss, [P, P]: the derivative of every entry of the gradient."""
    model, rows = at(task, params), list(rows)
    weights, (inputs, targets) = trained(model), (part[rows] for part in task.train)
    targets = targets.double() if targets.is_floating_point() else targets
    first = torch.autograd.grad(task.loss(model(inputs.double()), targets).mean(), weights, create_graph=True)
    return np.stack(
        [
            vector(torch.autograd.grad(e, weights, retain_graph=True, allow_unused=True), weights)
            for g in first
            for e in g.ravel()
        ]
    )


def damping(task, params, rows):
    """The mean squared entry of the gradients."""
    g = gradients(task, params, task.train, rows)
    return sum((one**2).mean() for one in g) / len(g)


def layers(task, params):
    """Which entries of a gradient belong to each parameter tensor."""
    start, found = 0, {}
    for name, p in at(task, params).named_parameters():
        if p.requires_grad:
            found[name] = slice(start, start + p.numel())
            start += p.numel()
    return found


# Scores [n_test, n_train]; `curvature` are training instances


def scores(task, params, train, test, P):
    """g_z P g_i, pair by pair."""
    left, right = gradients(task, params, task.test, test), gradients(task, params, task.train, train)
    return np.array([[g_z @ P @ g_i for g_i in right] for g_z in left])


def grad_dot(task, params, train, test, curvature):
    return scores(task, params, train, test, np.eye(sum(p.numel() for p in params.values())))


def grad_cos(task, params, train, test, curvature):
    left, right = gradients(task, params, task.test, test), gradients(task, params, task.train, train)
    return np.array([[g_z @ g_i / np.sqrt((g_z @ g_z) * (g_i @ g_i)) for g_i in right] for g_z in left])


def inverse(matrix, λ):
    return np.linalg.inv(matrix + λ * np.eye(len(matrix)))


def influence(task, params, train, test, curvature, λ):
    """(G + λI)⁻¹: of exact, CG, and LiSSA in the limit."""
    return scores(task, params, train, test, inverse(gauss_newton(task, params, curvature), λ))


def hessian_influence(task, params, train, test, curvature, λ):
    """(H + λI)⁻¹: of LiSSA-H in the limit."""
    H = hessian(task, params, curvature)
    assert np.linalg.eigvalsh(H)[0] + λ > 0.1 * λ, "too little damping for this Hessian"
    return scores(task, params, train, test, inverse(H, λ))


def datainf(task, params, train, test, curvature, λ):
    """Layer by layer the mean of explicit inverses; λ: parameter name -> damping."""
    P = np.zeros((sum(p.numel() for p in params.values()),) * 2)
    g = gradients(task, params, task.train, curvature)
    for name, part in layers(task, params).items():
        terms = [inverse(np.outer(g_j[part], g_j[part]), λ[name]) for g_j in g]
        P[part, part] = sum(terms) / len(terms)
    return scores(task, params, train, test, P)


def layer_damping(task, params, rows):
    g = gradients(task, params, task.train, rows)
    return {name: (g[:, part] ** 2).mean() for name, part in layers(task, params).items()}


def neumann_loop(task, params, train, test, curvature, λ, *, σ, depth, batch_size, seed, matrix=gauss_newton):
    """h <- v + h - (matrix of the batch + λ) h / σ for one test instance at a time; result h / σ."""
    alone = {i: matrix(task, params, [i]) for i in curvature}
    right, found = gradients(task, params, task.train, train), []
    for z in test:
        generator = torch.Generator().manual_seed(seed)
        v = gradients(task, params, task.test, [z])[0]
        h = v.copy()
        for _ in range(depth):
            batch = torch.randint(len(curvature), (batch_size,), generator=generator).tolist()
            mean = sum(alone[curvature[k]] for k in batch) / batch_size
            h = v + h - (mean @ h + λ * h) / σ
        found.append([h @ g_i / σ for g_i in right])
    return np.array(found)
